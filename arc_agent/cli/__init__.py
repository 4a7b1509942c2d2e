"""What an operator types on the host: `arc-agent` and its commands."""
