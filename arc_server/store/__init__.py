"""The registry of commands and all operational data, in one SQLite database."""
