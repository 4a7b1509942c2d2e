"""Params and results: encoded, sealed and signed."""
