"""Pushes: commands sent to workers that have a URL of their own."""
