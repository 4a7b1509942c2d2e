"""What crosses the wire between sender, server and agent: the `arc.v1` protocol and our additions.

No I/O, no clock; times and ids come in as arguments.
"""
