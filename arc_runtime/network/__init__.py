"""Explanations of failed connections, for the agent and the sender alike."""
