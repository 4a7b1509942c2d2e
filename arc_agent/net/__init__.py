"""Every byte that leaves the host: connections, routes, tokens, transfers."""
