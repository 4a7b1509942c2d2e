"""This script writes docs/configuration.md from the configuration classes.

python scripts/configuration_docs.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from arc_agent.config.declared_handlers import ExecSection, HttpSection, SqlSection
from arc_agent.config.sections import Config
from arc_runtime.config.options import describe, keys, show_default
from arc_runtime.config.settings import reference
from arc_server.config.sections import ServerConfig

FILE = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"

HEAD = """\
# Configuration

<!-- Made by scripts/configuration_docs.py from arc_server/config/sections.py and arc_agent/config. -->

Server and agent read one YAML file each (`--config FILE`). Each key may also come from the environment; the command line
wins over the environment, the environment over the file. An unknown key or a bad value is refused with its path:
`arc-server check-config FILE`, `arc-agent check-config FILE`. Durations are in seconds, sizes in bytes.

Commented examples: [config/server.yaml](../config/server.yaml), [config/agent.yaml](../config/agent.yaml).
"""

SENDER = """\
## The sender

`arc` and the Python library have no file. `arc` reads these variables; options on the command line win over them.

| variable | value |
|---|---|
| `ARC_SERVER_URL` | the URL of the server, with or without `/v1` |
| `ARC_TOKEN_FILE` | a file with the bearer token |
| `ARC_TOKEN` | the token itself; prefer a file |
| `ARC_CA_FILE` | a file of certificates to trust |
| `ARC_ALLOW_HTTP` | `1` allows an `http://` URL off loopback |
"""


DECLARED = """\
## Declared commands

The keys of a command in `handlers.exec`, `handlers.http` and `handlers.sql`: [declared-handlers.md](declared-handlers.md).
"""


def declared(name: str, kind: type) -> str:
    """Return the keys of one kind of declared commands."""
    rows = [f"### `handlers.{name}.NAME`\n", "| key | type | default | |", "|---|---|---|---|"]
    for key in keys(kind, "NONE"):
        shown = show_default(key.default)
        default = f"`{shown}`" if shown and shown != "required" else shown
        cells = (f"`{key.path}`", describe(key.type), default, key.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"


def text() -> str:
    """Return the page."""
    return "\n".join(
        (
            HEAD,
            "## The server\n",
            reference(ServerConfig, "ARC_SERVER"),
            "## The agent\n",
            reference(Config, "ARC_AGENT"),
            DECLARED,
            declared("exec", ExecSection),
            declared("http", HttpSection),
            declared("sql", SqlSection),
            SENDER,
        )
    )


def main() -> None:
    """Write the page; with `--check`, exit with an error if it is out of date."""
    if "--check" not in sys.argv[1:]:
        FILE.write_text(text())
    elif FILE.read_text() != text():
        raise SystemExit(
            "docs/configuration.md is out of date: python scripts/configuration_docs.py"
        )


if __name__ == "__main__":
    main()
