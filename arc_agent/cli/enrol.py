"""`arc-agent enrol`: trade an enrolment token for a credential of this agent's own.

The key pair is on the disk before it is sent to the server, and the server answers the same key
with the same credential: after any failure, the command can be repeated.
"""

from __future__ import annotations

import argparse
import asyncio
import getpass
import os
import re
import sys
from pathlib import Path
from typing import Final

from arc_agent.cli.output import DONE, NO, NOT_ALLOWED, NOT_THERE, fail, show
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

_CONFLICT: Final = 409
_ENROL_TOKEN: Final = re.compile(r"arc_enrol_[A-Za-z0-9_-]{43}", re.ASCII)
_INSTALLED: Final = Path("/etc/arc")
_MAX_TOKEN_BYTES: Final = 4096


def run(given: argparse.Namespace) -> int:
    """Enrol this agent; return the exit code. Raises SettingsError, TokenError (IdentityError)."""
    overrides = {
        "server.url": given.server,
        "deployment": given.deployment,
        "data_dir": given.data_dir,
    }
    config = read(given.config, os.environ, overrides, needs_deployment=False)
    directory = _directory(given, config)
    files = IdentityFiles(directory)
    former = files.read()
    if former is not None and not given.replace:
        return fail(
            NO, f"already enrolled as {former.credential_id}; --replace gets a new credential"
        )
    routes = Source(file=given.config, environ=os.environ, overrides=overrides).network(config)
    token = _token(given.enrol_token_file)
    try:
        info = asyncio.run(_enrol(config, routes, files, token))
    except Refused as error:
        return fail(NOT_ALLOWED, _why(error))
    except NoContact as error:
        return fail(NOT_THERE, f"{error.reason}; try again: this used no use of the token up")
    show(f"enrolled as {info.credential_id}, for the deployment {info.deployment_id}")
    show(f"the key is in {files.directory}; it never leaves this host")
    if former is None:
        show("restart the agent if it is running")
    return DONE


def _directory(given: argparse.Namespace, config: Config) -> Path:
    """Return the data directory; for a configuration of a unit, that of the unit."""
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
    """Return the enrolment token from a file, standard input, or a prompt.

    Raises TokenError, which never quotes it.
    """
    if file is not None:
        text = ConfiguredToken(None, file).value or ""
    elif sys.stdin.isatty():
        text = getpass.getpass("enrolment token (not shown): ").strip()
    else:
        text = sys.stdin.read(_MAX_TOKEN_BYTES).strip()
    if _ENROL_TOKEN.fullmatch(text) is None:
        raise TokenError(
            "not an enrolment token (arc_enrol_…): use --enrol-token-file FILE, or pipe it in"
        )
    return text


async def _enrol(
    config: Config, routes: Routes, files: IdentityFiles, token: str
) -> CredentialInfo:
    """Enrol, and store the identity. Raises Refused, NoContact, IdentityError."""
    connection = ServerConnection(config.server, ConfiguredToken(token, None), routes)
    await connection.open()
    try:
        key = await asyncio.to_thread(files.begin_enrolment)
        answer = await _ask(connection, config, key, token)
        if answer.status == _CONFLICT:  # another token enrolled the key
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
        agent_name=config.agent_name,
    )
    await asyncio.to_thread(files.enrolled, identity)
    return info


async def _ask(connection: ServerConnection, config: Config, key: KeyPair, token: str) -> Answer:
    """Send the request. Raises Refused, NoContact."""
    request = EnrolRequest(
        public_key=key.public_key,
        signature=key.sign("enrol", fingerprint(token), key.public_key),
        hostname=config.agent_name,
        deployment_id=config.deployment,
        target=config.command_target,
    )
    return await connection.call("POST", connection.url("agents", "enrol"), request)


def _why(error: Refused) -> str:
    """Return the meaning of a refusal."""
    if error.status == 403:
        return "the enrolment token is for another deployment or another target"
    if error.detail == "revoked":
        return "the credential of this token on this host was revoked; get a new enrolment token"
    return "the enrolment token is unknown, used up, expired or revoked"
