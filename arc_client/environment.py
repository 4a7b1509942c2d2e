"""The environment of a sender names its server, its token and its keys, where nothing else does.

    ARC_SERVER_URL          the server
    ARC_TOKEN_FILE          the file of the token; it goes before ARC_TOKEN
    ARC_TOKEN               the token itself
    ARC_CA_FILE             certificates to trust in place of the system's
    ARC_ALLOW_HTTP          1: plain HTTP may leave this machine
    ARC_SIGNING_KEY_FILE    the private key that signs commands
    ARC_ALLOW_HOSTS         private hosts that keep large params and results, with commas between

`arc` and the library read the same variables. An argument goes before its variable, and an empty
variable counts as unset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from arc_client.errors import ConfigurationError


class Access(NamedTuple):
    """Access is what a client needs to reach its server."""

    server_url: str
    token: str | None
    token_file: str | Path | None
    ca_file: str | Path | None
    allow_http: bool
    allow_hosts: Sequence[str]


def access_of(
    environ: Mapping[str, str],
    *,
    server_url: str | None = None,
    token: str | None = None,
    token_file: str | Path | None = None,
    ca_file: str | Path | None = None,
    allow_http: bool | None = None,
    allow_hosts: Sequence[str] | None = None,
    how: str = "name one, or set ARC_SERVER_URL",
) -> Access:
    """Complete arguments from the environment.

    A token in either form goes before both variables. Raises ConfigurationError without a server;
    `how` tells in the message how to name one.
    """
    server_url = server_url or environ.get("ARC_SERVER_URL")
    if not server_url:
        raise ConfigurationError(f"no server given: {how}")
    if token is None and token_file is None:
        token_file = file_of(environ, "ARC_TOKEN_FILE")
        token = None if token_file else environ.get("ARC_TOKEN") or None
    if allow_http is None:
        allow_http = _flag_of(environ, "ARC_ALLOW_HTTP")
    if allow_hosts is None:
        named = environ.get("ARC_ALLOW_HOSTS", "").split(",")
        allow_hosts = [host.strip() for host in named if host.strip()]
    ca_file = ca_file or file_of(environ, "ARC_CA_FILE")
    return Access(server_url, token, token_file, ca_file, allow_http, allow_hosts)


def file_of(environ: Mapping[str, str], name: str) -> Path | None:
    """Return the path in a variable; None when it is unset or empty."""
    text = environ.get(name)
    return Path(text) if text else None


def _flag_of(environ: Mapping[str, str], name: str) -> bool:
    """Return True for a variable that is 1 or true. Raises ConfigurationError for a strange one."""
    text = environ.get(name, "").lower()
    if text not in ("", "0", "1", "false", "true"):
        raise ConfigurationError(f"{name} must be 1 or 0, not {text!r}")
    return text in ("1", "true")
