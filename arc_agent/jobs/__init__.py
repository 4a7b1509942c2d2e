"""What the agent holds of a command, from its lease to its delivered response."""
