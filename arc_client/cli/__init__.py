"""The command line `arc`."""
