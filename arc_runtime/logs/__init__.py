"""Logging: structured events, their output, and the removal of secrets."""
