"""Push: commands of deployments that have a push URL are POSTed there."""
