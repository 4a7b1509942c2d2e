"""The SQLite database: opening it, writing it in batches, reading it."""
