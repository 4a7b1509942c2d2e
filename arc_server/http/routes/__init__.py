"""The routes, a module for each party: senders, holders, agents, blobs."""
