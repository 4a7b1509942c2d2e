"""The server's configuration: its sections, and the parts made of them."""
