"""The configuration: its sections, how it is read, and the schemas of params."""
