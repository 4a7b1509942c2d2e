"""Ports are what the services are written against: records, and one file for each port."""
