"""What an agent can do: finding handlers, running them, and those that come with it."""
