"""The rules of the lifecycle: what senders, holders and time may do to a command."""
