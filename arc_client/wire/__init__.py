"""Requests to the server: create, wait, events, transfers, and when to retry."""
