"""`arc-agent doctor`: checks of everything that an agent depends on, with advice."""
