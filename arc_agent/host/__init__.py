"""What the agent takes from the machine: its directory, clock, sockets, threads and systemd."""
