"""Handlers: the author's API, and the handlers that every agent has."""
