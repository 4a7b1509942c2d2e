"""Everything that the host's own files may say to the agent."""
