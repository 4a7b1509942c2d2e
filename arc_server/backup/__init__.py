"""Backups of a server's data: taken while it runs, restored, and checked."""
