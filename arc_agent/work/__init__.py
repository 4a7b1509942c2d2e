"""The agent's loops: polling, running, renewing, registering, sending events."""
