"""The names under which a program has the settings that mend a connection."""

from __future__ import annotations

import msgspec


class SettingNames(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of one program that an explanation of a failure names."""

    ca_file: str
    """The certificates to trust."""
    client_cert: str | None
    """The certificate of this host; None for a program that has none."""
    proxy_credentials: str
    """The credentials for the proxy."""
