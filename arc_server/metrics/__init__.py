"""Figures of a running server for monitoring systems. Nothing here is imported unless it is on."""
