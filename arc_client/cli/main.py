"""The command line `arc` sends commands from a shell.

Exit codes: 0 done; 1 the command failed, expired or was cancelled; 2 usage or configuration, or no
such command; 3 the server cannot be reached or is of no use now; 4 not allowed; 5 the command was
not done in time, and goes on; 6 no agent is there; 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arc_client.cli import keys
from arc_client.cli.arguments import ConnectionOptions, check_writable, duration, params_body
from arc_client.cli.handlers import offers
from arc_client.cli.output import print_line, show_json, show_message
from arc_client.cli.session import (
    CaFileOption,
    ServerOption,
    Session,
    TokenFileOption,
    in_session,
)
from arc_client.cli.views import (
    show_agents,
    show_cancel,
    show_commands,
    show_offer,
    show_offers,
    show_status,
)
from arc_client.wire.idempotency import new_idempotency_key
from arc_protocol.lifecycle import TERMINAL
from arc_protocol.messages.base import State
from arc_runtime.startup.standard_streams import open_standard_streams

if TYPE_CHECKING:
    from arc_client.client import Client
    from arc_protocol.messages.commands import CommandStatus

DEFAULT_TIMEOUT: Final = "60s"
LISTED: Final = 50

app = typer.Typer(
    name="arc",
    epilog=(
        "Exit codes: 0 done; 1 the command failed, expired or was cancelled; 2 usage or "
        "configuration; 3 the server cannot be reached; 4 not allowed; 5 not done within "
        "--timeout, and goes on; 6 no agent is there, and the command was cancelled "
        "(--wait-for-agent waits)."
    ),
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(keys.app)

TimeoutOption = Annotated[
    float,
    typer.Option(
        "--timeout",
        parser=duration,
        metavar="DURATION",
        help="Stop waiting after this long; the command goes on",
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out", metavar="FILE", help="Write the result to a file, byte for byte; - is stdout"
    ),
]
SignWithOption = Annotated[
    Path | None,
    typer.Option(
        "--sign-with",
        metavar="FILE",
        envvar="ARC_SIGNING_KEY_FILE",
        show_envvar=False,
        help="Sign with the private key in a file [env: ARC_SIGNING_KEY_FILE]",
    ),
]
EncryptToOption = Annotated[
    Path | None,
    typer.Option(
        "--encrypt-to",
        metavar="FILE",
        help="Seal the params for the host whose public key is in a file; needs --sign-with",
    ),
]
DeploymentOption = Annotated[str | None, typer.Option("--deployment", help="Filter by deployment")]
CommandId = Annotated[str, typer.Argument(metavar="ID", help="The command's id")]


def main() -> None:
    """Run `arc`."""
    open_standard_streams()
    app()


def print_version(is_asked: bool) -> None:
    """Print the version and exit, for `--version`."""
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
        typer.Option("--version", is_eager=True, callback=print_version, help="Print the version"),
    ] = False,
) -> None:
    """Send commands to software that runs where you cannot reach it"""
    ctx.obj = ConnectionOptions(server, token_file, ca_file)


@app.command()
@in_session
def invoke(
    session: Session,
    deployment: Annotated[
        str, typer.Argument(metavar="DEPLOYMENT", help="The deployment to run it on")
    ],
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="The name of its handler")],
    params: Annotated[
        str | None,
        typer.Option(
            "--params", metavar="JSON|@FILE|-", help="Its params; - is stdin [default: {}]"
        ),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", help="Send the params as bytes; do not check for JSON"),
    ] = False,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]  # typer parses it
    deadline: Annotated[
        float | None,
        typer.Option(
            "--deadline",
            parser=duration,
            metavar="DURATION",
            help="Let the server give the command up after this long",
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", help="Choose one of the deployment's targets")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Return the result of an earlier command with this key"),
    ] = None,
    max_attempts: Annotated[
        int | None, typer.Option("--max-attempts", min=1, help="Limit the attempts")
    ] = None,
    out: OutOption = None,
    no_wait: Annotated[
        bool, typer.Option("--no-wait", help="Print the command's id and do not wait")
    ] = False,
    sign_with: SignWithOption = None,
    encrypt_to: EncryptToOption = None,
    wait_for_agent: Annotated[
        bool,
        typer.Option(
            "--wait-for-agent",
            help="Wait even if no agent is there; by default the command is cancelled, exit code 6",
        ),
    ] = False,
) -> None:
    """Send a command, wait for it and print its result"""
    is_fresh = key is None
    session.key = key if key is not None else new_idempotency_key()
    session.connection = session.connection.with_keys(sign_with, encrypt_to)
    if out is not None:
        check_writable(out)
    with params_body(params, is_raw=raw) as body:

        async def work(client: Client) -> None:
            from arc_client.cli import invoke

            addressee = invoke.Addressee(deployment, command)
            options = invoke.SendOptions(
                deadline=deadline,
                target=target,
                idempotency_key=session.key,
                max_attempts=max_attempts,
            )
            if no_wait:
                sent = await invoke.send(client, session.progress, addressee, body, options)
                if session.as_json:
                    show_json({"commandId": sent.id, "state": sent.state})
                else:
                    print_line(sent.id)
                return
            await invoke.invoke(
                client,
                session.progress,
                addressee,
                body,
                options,
                timeout=timeout,
                out=out,
                gives_up=not wait_for_agent,
                is_fresh=is_fresh,
            )

        session.run(work, patience=timeout)


@app.command()
@in_session
def wait(
    session: Session,
    command_id: CommandId,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]  # typer parses it
    out: OutOption = None,
    sign_with: SignWithOption = None,
    encrypt_to: EncryptToOption = None,
) -> None:
    """Wait for a command that was sent before and print its result"""
    session.connection = session.connection.with_keys(sign_with, encrypt_to)
    session.progress.command_id = command_id
    if out is not None:
        check_writable(out)

    async def work(client: Client) -> None:
        from arc_client.cli import invoke

        await invoke.wait(client, session.progress, command_id, timeout=timeout, out=out)

    session.run(work, patience=timeout)


@app.command()
@in_session
def status(session: Session, command_id: CommandId) -> None:
    """Show the status of a command"""
    session.show(session.run(lambda client: client.status(command_id)), show_status)


@app.command()
@in_session
def events(
    session: Session,
    command_id: CommandId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the command has ended")
    ] = False,
) -> None:
    """Show what the handler of a command logs and reports"""
    session.progress.command_id = command_id

    async def work(client: Client) -> None:
        from arc_client.cli.events import show_events

        await show_events(client, command_id, is_followed=follow, as_json=session.as_json)

    session.run(work)


@app.command(name="list")
@in_session
def list_commands(
    session: Session,
    deployment: DeploymentOption = None,
    state: Annotated[
        State | None, typer.Option("--state", case_sensitive=False, help="Filter by state")
    ] = None,
    command: Annotated[str | None, typer.Option("--command", help="Filter by name")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Limit the list")] = LISTED,
) -> None:
    """List commands, newest first"""

    async def work(client: Client) -> list[CommandStatus]:
        found = client.list(deployment=deployment, state=state, command=command, limit=limit)
        return [each async for each in found]

    session.show(session.run(work), show_commands)


@app.command()
@in_session
def cancel(session: Session, command_id: CommandId) -> None:
    """Cancel a command; one that has ended stays as it is"""

    async def work(client: Client) -> CommandStatus:
        found = await client.cancel(command_id)
        if found.state in TERMINAL:
            return await client.status(command_id)  # says how it ended
        return found

    session.show(session.run(work), show_cancel)


@app.command()
@in_session
def agents(
    session: Session,
    deployment: DeploymentOption = None,
    handlers: Annotated[
        bool, typer.Option("--handlers", help="List their handlers, one per line")
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="List agents, too, that restarted since or left long ago"),
    ] = False,
) -> None:
    """List agents and what they can run, and receivers that do not register"""
    schemas = handlers and session.as_json
    found = session.run(lambda client: client.roll_call(deployment, schemas=schemas, old=every))
    agents = [each for each in found.agents if deployment in (None, each.deployment_id)]
    if handlers and not session.as_json:
        show_offers(offers(agents))
    elif handlers:
        show_json(agents)
    else:
        session.show([*agents, *(found.receivers or ())], show_agents)


@app.command()
@in_session
def describe(
    session: Session,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Where it would run")],
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="The name of its handler")],
) -> None:
    """Show what a command is for, what it takes and what it returns"""
    agents = session.run(lambda client: client.agents(deployment=deployment, schemas=True))
    found = offers(agents, command)
    if not found:
        show_message(f"error: no agent of {deployment} has a handler for {command}")
        show_message(f"  List the handlers: arc agents --handlers --deployment {deployment}")
        raise typer.Exit(1)
    if session.as_json:
        show_json(
            [{"handler": o.handler, "hosts": sorted({a.hostname for a in o.agents})} for o in found]
        )
        return
    for number, offer in enumerate(found):
        if number:
            print_line("")
        show_offer(offer)
