"""Handlers that YAML declares: programs, HTTP services and databases."""
