"""The server as the agent's loops use it: one object in place of three that always go together."""

from __future__ import annotations

from typing import NamedTuple

from arc_agent.net.connection import ServerConnection
from arc_agent.net.server_state import ServerState
from arc_agent.net.transfer import Transfer


class Server(NamedTuple):
    """The ways to the server, and what is known of it."""

    connection: ServerConnection
    """For its own routes, with the bearer token."""
    transfer: Transfer
    """For presigned URLs, without it."""
    state: ServerState
    """The server's reachability, and the extensions that it knows. Safe from any thread."""
