"""Routes: a module for each party of the protocol."""
