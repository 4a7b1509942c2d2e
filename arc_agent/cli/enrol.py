"""`arc-agent enrol`: an enrol token for a credential of this agent's own.

The key pair is on the disk before the server hears of it, and the server answers the same key again
with the same credential: whatever dies in between, the command can be repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import re
import socket
import sys
from pathlib import Path
from typing import Final

from arc_agent.config.places import data_directory
from arc_agent.config.reading import read
from arc_agent.config.sections import Config
from arc_agent.net.access_token import read_answer
from arc_agent.net.connection import Answer, NoContact, Refused, ServerConnection
from arc_agent.net.identity_files import Identity, IdentityFiles, KeyPair
from arc_agent.net.routes import Routes
from arc_agent.net.token import ConfiguredToken, TokenError
from arc_agent.work.live_config import Source
from arc_protocol.enrolment import CredentialInfo, EnrolRequest, fingerprint
from arc_runtime.failpoints import hit

_DONE: Final = 0
_NO: Final = 1
_BAD: Final = 2
_NOT_THERE: Final = 3
_NOT_ALLOWED: Final = 4
_CONFLICT: Final = 409
_ENROL_TOKEN: Final = re.compile(r"arc_enrol_[A-Za-z0-9_-]{43}", re.ASCII)
_INSTALLED: Final = Path("/etc/arc")
_MAX_TOKEN_BYTES: Final = 4096


def run(given: argparse.Namespace) -> int:
    """Enrol; the exit code. Raises SettingsError, TokenError (IdentityError)."""
    overrides = {
        "server.url": given.server,
        "deployment": given.deployment,
        "data_dir": given.data_dir,
    }
    config = read(given.config, os.environ, overrides, needs_deployment=False)
    directory = _directory(given, config)
    files = IdentityFiles(directory)
    before = files.read()
    if before is not None and not given.replace:
        return _fail(
            _NO, f"enrolled already, as {before.credential_id}; --replace makes a new credential"
        )
    network = Source(file=given.config, environ=os.environ, overrides=overrides).network(config)
    token = _token(given.enrol_token_file)
    try:
        info = asyncio.run(_enrol(config, network, files, token))
    except Refused as error:
        return _fail(_NOT_ALLOWED, _why(error))
    except NoContact as error:
        return _fail(
            _NOT_THERE, f"{error.reason}; try again: a use of the token is not lost by that"
        )
    _print(f"enrolled as {info.credential_id}, for the deployment {info.deployment_id}")
    _print(f"its key is in {files.directory}; it does not leave this host")
    if before is None:
        _print("an agent that runs must be restarted once")
    return _DONE


def _directory(given: argparse.Namespace, config: Config) -> Path:
    """The agent's state; root means that of the unit when it names the unit's configuration."""
    file: Path | None = given.config
    if (
        file is not None
        and file.parent == _INSTALLED
        and config.data_dir is None
        and "STATE_DIRECTORY" not in os.environ
    ):
        name = file.stem
        return Path("/var/lib") / ("arc-agent" if name == "agent" else f"arc-agent-{name}")
    return data_directory(config, os.environ)


def _token(file: Path | None) -> str:
    """The enrol token: from a file, a pipe, or a person. Raises TokenError, which never quotes it.

    Never from the command line: every user of the host can read that.
    """
    if file is not None:
        text = ConfiguredToken(None, file).value or ""
    elif sys.stdin.isatty():
        text = getpass.getpass("enrol token (not shown): ").strip()
    else:
        text = sys.stdin.read(_MAX_TOKEN_BYTES).strip()
    if _ENROL_TOKEN.fullmatch(text) is None:
        raise TokenError(
            "that is no enrol token (arc_enrol_…): give --enrol-token-file F, or pipe it in"
        )
    return text


async def _enrol(
    config: Config, network: Routes, files: IdentityFiles, token: str
) -> CredentialInfo:
    """Ask, and keep the answer. Raises Refused, NoContact, IdentityError."""
    connection = ServerConnection(config.server, ConfiguredToken(token, None), network)
    await connection.open()
    try:
        key = await asyncio.to_thread(files.begin_enrolment)
        answer = await _ask(connection, config, key, token)
        if answer.status == _CONFLICT:  # enrolled by another token, and we never heard of it
            key = await asyncio.to_thread(files.begin_enrolment, afresh=True)
            answer = await _ask(connection, config, key, token)
    finally:
        await connection.close()
    info = read_answer(answer, CredentialInfo)
    hit("agent.after_enrol_request")
    identity = Identity(
        credential_id=info.credential_id,
        deployment_id=info.deployment_id,
        server=config.server.url or "",
        key=key,
    )
    await asyncio.to_thread(files.enrolled, identity)
    return info


async def _ask(connection: ServerConnection, config: Config, key: KeyPair, token: str) -> Answer:
    """One request. Raises Refused, NoContact."""
    request = EnrolRequest(
        public_key=key.public_key,
        signature=key.sign("enrol", fingerprint(token), key.public_key),
        hostname=(config.name or socket.gethostname())[:256],
        deployment_id=config.deployment,
    )
    return await connection.call("POST", connection.url("agents", "enrol"), request)


def _why(error: Refused) -> str:
    """What a refusal means."""
    if error.status == 403:
        return "this enrol token is for another deployment"
    if error.detail == "revoked":
        return "the credential that this token made here was revoked; get a new enrol token"
    return "the enrol token is not known, used up, expired or revoked"


def _fail(code: int, text: str) -> int:
    """Say what is wrong."""
    sys.stderr.write(f"arc-agent: {text}\n")
    return code


def _print(text: str) -> None:
    """A line of the answer."""
    sys.stdout.write(f"{text}\n")
