"""The answers of a running agent to operators and monitoring systems."""
