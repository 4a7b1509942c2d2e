"""The control socket of a running server, by which commands on its host reach its store."""
