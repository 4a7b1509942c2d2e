"""The network: connections to the server, routes out of the host, tokens and transfers."""
