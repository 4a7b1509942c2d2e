"""The machine: the agent's directory, clock, control socket, threads and systemd."""
