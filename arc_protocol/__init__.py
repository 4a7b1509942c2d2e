"""The wire between sender, server and agent: the `arc.v1` base protocol and its extensions.

No I/O, no clock: times and ids come in as arguments.
"""
