"""The configuration of the server, and the limits of its parts that are made from it."""
