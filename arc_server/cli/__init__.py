"""What an operator types: `arc-server` and its commands."""
