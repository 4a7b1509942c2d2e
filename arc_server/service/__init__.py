"""Services: the rules of commands, leases, events and agents, written against ports."""
