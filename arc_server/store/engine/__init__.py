"""How the SQLite database is opened, written in batches, and read."""
