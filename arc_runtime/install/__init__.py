"""Installing, upgrading and removing one of the services on a host."""
