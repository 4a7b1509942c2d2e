"""The command line `arc-agent`, for operators on the host."""
