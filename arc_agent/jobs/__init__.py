"""The agent's part of a command, from its lease to its delivered response."""
