"""`arc`: send commands from a shell.

Exit codes: 0 done; 1 the command failed, expired or was cancelled; 2 usage or configuration, or no
such command; 3 the server cannot be reached or is of no use now; 4 not allowed; 5 it was not done
in time, and goes on; 6 no agent is there; 130 interrupted.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arc_client.cli import keys
from arc_client.cli.arguments import ConnectionOptions, check_writable, duration, params_body
from arc_client.cli.handlers import offers
from arc_client.cli.output import (
    describe_offer,
    print_line,
    say,
    show_agents,
    show_cancel,
    show_commands,
    show_json,
    show_offers,
    show_status,
)
from arc_client.cli.session import reporting, with_client
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.base import State

if TYPE_CHECKING:
    from arc_client.client import Client

DEFAULT_TIMEOUT: Final = "60s"
LISTED: Final = 50

app = typer.Typer(
    name="arc",
    epilog=(
        "Exit codes: 0 done; 1 the command failed, expired or was cancelled; 2 usage or "
        "configuration; 3 the server can't be reached; 4 not allowed; 5 it was not done within "
        "--timeout, and goes on; 6 no agent is there, and it was "
        "cancelled (--wait-for-agent waits)."
    ),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(keys.app)

ServerOption = Annotated[
    str | None, typer.Option("--server", metavar="URL", help="The server, or ARC_SERVER_URL.")
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option(
        "--token-file",
        metavar="FILE",
        help="The token is in this file, or in that of ARC_TOKEN_FILE; or it is ARC_TOKEN.",
    ),
]
CaFileOption = Annotated[
    Path | None,
    typer.Option("--ca-file", metavar="FILE", help="Certificates to trust, or ARC_CA_FILE."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON, for programs; errors too.")]
TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        parser=duration,
        metavar="DURATION",
        help="How long to wait for the result. The command goes on afterwards.",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the result there, byte for byte; - is stdout."
    ),
]
SignWithOption = Annotated[
    Path | None,
    typer.Option(
        "--sign-with",
        metavar="FILE",
        envvar="ARC_SIGNING_KEY_FILE",
        show_envvar=False,
        help="Your key to sign with is in this file, or in that of ARC_SIGNING_KEY_FILE.",
    ),
]
EncryptToOption = Annotated[
    Path | None,
    typer.Option(
        "--encrypt-to",
        metavar="FILE",
        help="Only the host of the public key in this file can read it; needs --sign-with.",
    ),
]
CommandId = Annotated[str, typer.Argument(metavar="ID", help="The id of the command.")]


def main() -> None:
    """The entry point of `arc`."""
    app()


def print_version(is_asked: bool) -> None:
    """Print the version and end, if that is what was asked for."""
    if is_asked:
        from importlib.metadata import version

        print_line(f"arc {version('arc-commands')}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=print_version, help="Print the version."),
    ] = False,
) -> None:
    """Send commands to software that runs where you cannot reach it."""
    ctx.obj = ConnectionOptions(server, token_file, ca_file)


@app.command()
def invoke(
    ctx: typer.Context,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Where it shall run.")],
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="What shall run.")],
    params: Annotated[
        str | None,
        typer.Option(
            "--params", metavar="JSON|@FILE|-", help="Its params; {} unless given; - is stdin."
        ),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="The params are bytes: do not check that they are JSON.")
    ] = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]  # typer parses it
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            parser=duration,
            metavar="DURATION",
            help="The server gives it up after that long.",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="One of several targets of the deployment.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="A command with a key that was used before is not run again."),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option("--max-attempts", min=1, help="How often it may be tried.")
    ] = None,
    out: OutOption = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print its id, and do not wait for it.")
    ] = False,
    sign_with: SignWithOption = None,
    encrypt_to: EncryptToOption = None,
    wait_for_agent: Annotated[
        bool,
        typer.Option(
            "--wait-for-agent",
            help="Wait also when no agent is there; otherwise it is cancelled, with exit code 6.",
        ),
    ] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Send a command, wait for it, and print its result."""
    is_fresh = key is None
    key = key if key is not None else str(uuid.uuid4())
    access = ConnectionOptions(server, token_file, ca_file, sign_with, encrypt_to).over(ctx.obj)
    with reporting(as_json=as_json, key=key) as progress:
        if out is not None:
            check_writable(out)
        with params_body(params, is_raw=raw) as body:

            async def work(client: Client) -> None:
                from arc_client.cli import invoke

                whom = invoke.Addressee(deployment, command, target)
                how = invoke.SendOptions(
                    deadline=deadline,
                    target=target,
                    idempotency_key=key,
                    max_attempts=max_attempts,
                )
                if not no_wait:
                    await invoke.invoke(
                        client,
                        progress,
                        whom,
                        body,
                        how,
                        timeout=timeout,
                        out=out,
                        gives_up=not wait_for_agent,
                        is_fresh=is_fresh,
                    )
                    return
                sent = await invoke.send(client, progress, whom, body, how)
                if as_json:
                    show_json({"commandId": sent.id, "state": sent.state})
                else:
                    print_line(sent.id)

            with_client(access, progress, work, patience=timeout)


@app.command()
def wait(
    ctx: typer.Context,
    command_id: CommandId,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]  # typer parses it
    out: OutOption = None,
    sign_with: SignWithOption = None,
    encrypt_to: EncryptToOption = None,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Wait for a command that was sent before, and print its result."""
    access = ConnectionOptions(server, token_file, ca_file, sign_with, encrypt_to).over(ctx.obj)
    with reporting(as_json=as_json, command_id=command_id) as progress:
        if out is not None:
            check_writable(out)

        async def work(client: Client) -> None:
            from arc_client.cli import invoke

            await invoke.wait(client, progress, command_id, timeout=timeout, out=out)

        with_client(access, progress, work, patience=timeout)


@app.command()
def status(
    ctx: typer.Context,
    command_id: CommandId,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Show where a command stands."""
    access = ConnectionOptions(server, token_file, ca_file).over(ctx.obj)
    with reporting(as_json=as_json) as progress:

        async def work(client: Client) -> None:
            found = await client.status(command_id)
            show_json(found) if as_json else show_status(found)

        with_client(access, progress, work)


@app.command()
def events(
    ctx: typer.Context,
    command_id: CommandId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the command has ended.")
    ] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Show what the handler of a command says while it runs."""
    access = ConnectionOptions(server, token_file, ca_file).over(ctx.obj)
    with reporting(as_json=as_json, command_id=command_id) as progress:

        async def work(client: Client) -> None:
            from arc_client.cli.events import show_events

            await show_events(client, command_id, is_followed=follow, as_json=as_json)

        with_client(access, progress, work)


@app.command(name="list")
def list_commands(
    ctx: typer.Context,
    deployment: Annotated[
        str | None, typer.Option("--deployment", help="Only those of this deployment.")
    ] = None,
    state: Annotated[
        State | None,
        typer.Option("--state", case_sensitive=False, help="Only those in this state."),
    ] = None,
    command: Annotated[
        str | None, typer.Option("--command", help="Only those of this name.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many at most.")] = LISTED,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """List commands, newest first."""
    access = ConnectionOptions(server, token_file, ca_file).over(ctx.obj)
    with reporting(as_json=as_json) as progress:

        async def work(client: Client) -> None:
            found = [
                one
                async for one in client.list(
                    deployment=deployment, state=state, command=command, limit=limit
                )
            ]
            show_json(found) if as_json else show_commands(found)

        with_client(access, progress, work)


@app.command()
def cancel(
    ctx: typer.Context,
    command_id: CommandId,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Stop a command; one that has ended stays as it is."""
    access = ConnectionOptions(server, token_file, ca_file).over(ctx.obj)
    with reporting(as_json=as_json) as progress:

        async def work(client: Client) -> None:
            found = await client.cancel(command_id)
            if found.state in TERMINAL:
                found = await client.status(command_id)  # tells how it ended
            show_json(found) if as_json else show_cancel(found)

        with_client(access, progress, work)


@app.command()
def agents(
    ctx: typer.Context,
    deployment: Annotated[
        str | None, typer.Option("--deployment", help="Only those of this deployment.")
    ] = None,
    handlers: Annotated[
        bool, typer.Option("--handlers", help="What they can do, a command a line.")
    ] = False,
    as_json: JsonOption = False,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Show who is there to run commands, and what they can do."""
    access = ConnectionOptions(server, token_file, ca_file).over(ctx.obj)
    with reporting(as_json=as_json) as progress:

        async def work(client: Client) -> None:
            found = await client.agents(deployment=deployment, schemas=handlers and as_json)
            if as_json:
                show_json(found)
            elif handlers:
                show_offers(offers(found))
            else:
                show_agents(found)

        with_client(access, progress, work)


@app.command()
def describe(
    ctx: typer.Context,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Where it would run.")],
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="Which command.")],
    as_json: JsonOption = False,
    server: ServerOption = None,
    token_file: TokenFileOption = None,
    ca_file: CaFileOption = None,
) -> None:
    """Show what a command is for, what it takes and what it returns."""
    access = ConnectionOptions(server, token_file, ca_file).over(ctx.obj)
    with reporting(as_json=as_json) as progress:

        async def work(client: Client) -> None:
            found = offers(await client.agents(deployment=deployment, schemas=True), command)
            if not found:
                say(f"error: no agent of {deployment} has a handler for {command}")
                say(f"  What there is: arc agents --handlers --deployment {deployment}")
                raise typer.Exit(1)
            if as_json:
                show_json(
                    [
                        {"handler": o.handler, "hosts": sorted({a.hostname for a in o.agents})}
                        for o in found
                    ]
                )
                return
            for number, offer in enumerate(found):
                if number:
                    print_line("")
                describe_offer(offer)

        with_client(access, progress, work)
