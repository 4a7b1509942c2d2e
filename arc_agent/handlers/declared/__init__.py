"""The handlers that YAML declares: programs, HTTP services and databases."""
