"""The command line `arc` sends commands from a shell.

Exit codes: 0 done; 1 the command failed, expired or was cancelled; 2 usage or configuration, or no
such command; 3 the server cannot be reached or is of no use now; 4 not allowed; 5 the command was
not done in time, and goes on; 6 no agent is there; 130 interrupted.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from arc_client.cli import finding, keys
from arc_client.cli.arguments import ConnectionOptions, check_writable, duration, params_body
from arc_client.cli.finding import DeploymentOption, tags_of
from arc_client.cli.handlers import Offer, offers
from arc_client.cli.output import print_line, show_json
from arc_client.cli.session import (
    CaFileOption,
    ServerOption,
    Session,
    TokenFileOption,
    in_session,
)
from arc_client.cli.views import (
    push_note,
    show_agents,
    show_cancel,
    show_life,
    show_offer,
    show_offers,
    show_status,
)
from arc_client.wire.idempotency import new_idempotency_key
from arc_protocol.lifecycle import TERMINAL
from arc_runtime.startup.standard_streams import open_standard_streams
from arc_runtime.terminal.errors import print_error
from arc_runtime.terminal.help_page import examples
from arc_runtime.terminal.suggestions import suggestion
from arc_runtime.terminal.table import print_note
from arc_runtime.terminal.text import printable
from arc_runtime.terminal.typer_programs import Program

if TYPE_CHECKING:
    from arc_client.client import Client
    from arc_protocol.messages.agents import AgentInfo, ReceiverInfo
    from arc_protocol.messages.commands import AttemptInfo, CommandStatus

DEFAULT_TIMEOUT: Final = "60s"

app = Program(
    "arc",
    about="Send commands to software that runs where you cannot reach it",
    epilog=examples(
        "arc agents --handlers",
        'arc invoke acme-eu-1 reports.generate --params \'{"month": "2026-10"}\'',
        "arc list --deployment acme-eu-1 --state failed",
    )
    + """

Exit codes:
  0    done
  1    the command failed, expired or was cancelled
  2    usage or configuration, or no such command
  3    the server cannot be reached
  4    not allowed
  5    not done within --timeout; the command goes on
  6    no agent is there; the command was cancelled (--wait-for-agent waits)
  130  interrupted""",
)

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
RawOutputOption = Annotated[
    bool,
    typer.Option(
        "--raw-output", "-r", help="Write a result that is a JSON string as its text, in a pipe too"
    ),
]
CommandId = Annotated[
    str, typer.Argument(metavar="ID", help="The command's id, or the beginning of it")
]


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
    ctx.obj = ConnectionOptions(server, token_file, ca_file)


@app.command(
    epilog=examples(
        'arc invoke acme-eu-1 reports.generate --params \'{"month": "2026-10"}\'',
        "arc invoke acme-eu-1 tables.import --params @table.json --timeout 10m",
        "arc invoke acme-eu-1 tables.export --params @query.json --out users.csv",
        "gzip -dc table.json.gz | arc invoke acme-eu-1 tables.import --params -",
        "id=$(arc invoke acme-eu-1 db.vacuum --no-wait)",
    )
)
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
        str | None,
        typer.Option("--target", metavar="ID", help="Choose one of the deployment's targets"),
    ] = None,
    key: Annotated[
        str | None,
        typer.Option("--key", help="Return the result of an earlier command with this key"),
    ] = None,
    max_attempts: Annotated[
        int | None,
        typer.Option("--max-attempts", min=1, metavar="N", help="Limit the attempts"),
    ] = None,
    not_before: Annotated[
        float | None,
        typer.Option(
            "--not-before",
            parser=duration,
            metavar="DURATION",
            help="Let it run after this long at the earliest",
        ),
    ] = None,
    tag: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="KEY=VALUE", help="Tag it, to find it by"),
    ] = None,
    out: OutOption = None,
    raw_output: RawOutputOption = False,
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
    tags = tags_of(tag)
    is_fresh = key is None
    session.key = key if key is not None else new_idempotency_key()
    session.connection = session.connection.with_keys(sign_with, encrypt_to)
    check_writable(out, is_raw=raw_output)
    with params_body(params, is_raw=raw) as body:

        async def work(client: Client) -> None:
            from arc_client.cli import invoke

            addressee = invoke.Addressee(deployment, command)
            options = invoke.SendOptions(
                deadline=deadline,
                target=target,
                idempotency_key=session.key,
                max_attempts=max_attempts,
                not_before=not_before,
                tags=tags,
            )
            if no_wait:
                sent = await invoke.send(client, session.progress, addressee, body, options)
                if session.as_json:
                    show_json({"commandId": sent.id, "state": sent.state})
                else:
                    print_line(printable(sent.id))
                return
            await invoke.invoke(
                client,
                session.progress,
                addressee,
                body,
                options,
                timeout=timeout,
                out=out,
                is_raw=raw_output,
                gives_up=not wait_for_agent,
                is_fresh=is_fresh,
            )

        session.run(work, patience=timeout)


@app.command(epilog=examples('arc wait "$id" --timeout 10m', 'arc wait "$id" --out users.csv'))
@in_session
def wait(
    session: Session,
    command_id: CommandId,
    timeout: TimeoutOption = DEFAULT_TIMEOUT,  # type: ignore[assignment]  # typer parses it
    out: OutOption = None,
    raw_output: RawOutputOption = False,
    sign_with: SignWithOption = None,
    encrypt_to: EncryptToOption = None,
) -> None:
    """Wait for a command that was sent before and print its result"""
    session.connection = session.connection.with_keys(sign_with, encrypt_to)
    check_writable(out, is_raw=raw_output)

    async def work(client: Client, command_id: str) -> None:
        from arc_client.cli import invoke

        session.progress.command_id = command_id
        await invoke.wait(
            client, session.progress, command_id, timeout=timeout, out=out, is_raw=raw_output
        )

    session.run_with_id(command_id, work, patience=timeout)


@app.command(epilog=examples('arc status "$id"', 'arc status "$id" --json'))
@in_session
def status(session: Session, command_id: CommandId) -> None:
    """Show the status of a command"""

    async def work(client: Client, command_id: str) -> CommandStatus:
        return await client.status(command_id)

    session.show(session.run_with_id(command_id, work), show_status)


@app.command(epilog=examples('arc show "$id"', 'arc show "$id" --json'))
@in_session
def show(session: Session, command_id: CommandId) -> None:
    """Show the whole life of a command: its status, and every attempt"""

    async def work(client: Client, command_id: str) -> tuple[CommandStatus, list[AttemptInfo]]:
        status = await client.status(command_id)
        return status, list(await client.attempts(command_id))

    status, attempts = session.run_with_id(command_id, work)
    if session.as_json:
        show_json({"status": status, "attempts": attempts})
    else:
        show_life(status, attempts, is_wide=session.is_wide)


@app.command(epilog=examples('arc events "$id"', 'arc events "$id" --follow'))
@in_session
def events(
    session: Session,
    command_id: CommandId,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the command has ended")
    ] = False,
) -> None:
    """Show what the handler of a command logs and reports"""

    async def work(client: Client, command_id: str) -> None:
        from arc_client.cli.events import show_events

        session.progress.command_id = command_id
        await show_events(client, command_id, is_followed=follow, as_json=session.as_json)

    session.run_with_id(command_id, work)


app.command(
    "list",
    epilog=examples(
        "arc list",
        "arc list --deployment acme-eu-1 --state failed --since 1h",
        "arc list --tag team=web --state failed --state expired -o wide",
        "arc list --deployment acme-eu-1 --count",
    ),
)(finding.list_commands)


@app.command(epilog=examples('arc cancel "$id"'))
@in_session
def cancel(session: Session, command_id: CommandId) -> None:
    """Cancel a command; one that has ended stays as it is"""

    async def work(client: Client, command_id: str) -> CommandStatus:
        found = await client.cancel(command_id)
        if found.state in TERMINAL:
            return await client.status(command_id)  # says how it ended
        return found

    session.show(session.run_with_id(command_id, work), show_cancel)


app.command(
    epilog=examples(
        'arc retry "$id"',
        'arc wait "$(arc retry "$id")"',
        "arc retry --deployment acme-eu-1 --state failed --since 1h",
    )
)(finding.retry)


@app.command(
    epilog=examples(
        "arc agents",
        "arc agents --deployment acme-eu-1 --all -o wide",
        "arc agents --handlers",
    )
)
@in_session
def agents(
    session: Session,
    deployment: DeploymentOption = None,
    handlers: Annotated[
        bool, typer.Option("--handlers", help="List their handlers, one per line")
    ] = False,
    every: Annotated[
        bool,
        typer.Option("--all", help="Also list agents that left long ago, and earlier starts"),
    ] = False,
) -> None:
    """List agents and what they can run, and receivers that do not register"""

    async def work(client: Client) -> tuple[list[AgentInfo], list[ReceiverInfo]]:
        from arc_client.cli.lookup import deployment_suggestion

        found = await client.roll_call(deployment, schemas=handlers and session.as_json, old=every)
        agents = [each for each in found.agents if deployment in (None, each.deployment_id)]
        receivers = [
            each for each in found.receivers or () if deployment in (None, each.deployment_id)
        ]
        if deployment is not None and found.presence is not None and found.presence.is_pushed:
            print_note(push_note(deployment, found.presence))
        elif deployment is not None and not agents and not receivers:
            likely = await deployment_suggestion(client, deployment)
            if likely:
                print_note(f"there is no deployment {deployment}{likely}")
        return agents, receivers

    agents, receivers = session.run(work)
    if handlers and not session.as_json:
        show_offers(offers(agents), is_wide=session.is_wide)
    elif handlers:
        show_json(agents)
    else:
        session.show(
            [*agents, *receivers], lambda shown: show_agents(shown, is_wide=session.is_wide)
        )


@app.command(
    epilog=examples(
        "arc describe acme-eu-1 reports.generate", "arc describe acme-eu-1 db.vacuum --json"
    )
)
@in_session
def describe(
    session: Session,
    deployment: Annotated[str, typer.Argument(metavar="DEPLOYMENT", help="Where it would run")],
    command: Annotated[str, typer.Argument(metavar="COMMAND", help="The name of its handler")],
) -> None:
    """Show what a command is for, what it takes and what it returns"""

    async def work(client: Client) -> tuple[list[Offer], str]:
        from arc_client.cli.lookup import deployment_suggestion

        agents = await client.agents(deployment=deployment, schemas=True)
        found = offers(agents, command)
        if agents:
            names = {handler.name for agent in agents for handler in agent.handlers}
            return found, suggestion(command, names)
        return found, await deployment_suggestion(client, deployment)

    found, likely = session.run(work)
    if not found:
        print_error(
            f"no agent of {deployment} has a handler for {command}{likely}",
            next_steps=[f"List the handlers: arc agents --handlers --deployment {deployment}"],
        )
        raise typer.Exit(1)
    if session.as_json:
        show_json(
            [{"handler": o.handler, "hosts": sorted({a.hostname for a in o.agents})} for o in found]
        )
        return
    for number, offer in enumerate(found):
        if number:
            print_line("")
        show_offer(offer, is_wide=session.is_wide)


app.add_typer(keys.app)
