"""The section `handlers`: where handlers are loaded from, and how they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from arc_agent.config.declared_handlers import ExecSection, HttpSection, SqlSection
from arc_runtime.config.sections import Section, about


class HandlerSettings(Section, frozen=True, kw_only=True):
    """This host's settings for one handler; they override the handler's own."""

    timeout_seconds: Annotated[float, about("The time limit of one run.", gt=0)] | None = None
    concurrency: (
        Annotated[
            int,
            about(
                "How many commands run at the same time; others wait without a slot.",
                ge=1,
                le=1000,
            ),
        ]
        | None
    ) = None
    idempotent: (
        Annotated[
            bool,
            about(
                "The handler may run a second time for a command. If false, a command that may"
                " have run already ends with MAYBE_EXECUTED."
            ),
        ]
        | None
    ) = None


class HandlersSection(Section, frozen=True, kw_only=True):
    """The handlers."""

    modules: Annotated[
        list[str], about("Python modules, or paths of .py files, with handlers.")
    ] = []
    path: Annotated[
        list[Path], about("Directories to search for these modules before all others.")
    ] = []
    entry_points: Annotated[
        bool, about("Load handlers of installed packages (entry points `arc_agent.handlers`).")
    ] = True
    strict: Annotated[bool, about("Refuse to start when an entry point cannot be imported.")] = (
        False
    )
    settings: Annotated[
        dict[str, HandlerSettings], about("Settings that override a handler's own, by its name.")
    ] = {}
    max_waiting: Annotated[
        int,
        about(
            "How many commands may wait for their handler or for another try; at this number the"
            " agent takes no more.",
            ge=1,
            le=1000,
        ),
    ] = 50
    lifespan_seconds: Annotated[
        float,
        about("The time limit for opening a lifespan, and for closing it.", gt=0, le=3600),
    ] = 30.0
    journal_days: Annotated[
        float,
        about("How long the agent remembers which commands it started.", gt=0, le=3650),
    ] = 30.0
    exec: Annotated[dict[str, ExecSection], about("Commands that run a program, by name.")] = {}
    http: Annotated[
        dict[str, HttpSection], about("Commands that call an HTTP service, by name.")
    ] = {}
    sql: Annotated[dict[str, SqlSection], about("Commands that query a database, by name.")] = {}
    timeout_seconds: Annotated[float, about("The time limit of every handler.", gt=0)] | None = None
    grace_seconds: Annotated[
        float,
        about("How long a cancelled handler may take before it is abandoned.", ge=0, le=600),
    ] = 5.0
    max_schema_bytes: Annotated[
        int,
        about(
            "The largest schema of a handler that is sent to the server; 0 sends none.",
            ge=0,
            le=256 * 1024,
        ),
    ] = 16 * 1024
    send_tracebacks: Annotated[
        bool, about("Send the traceback of a failed handler to the sender.")
    ] = False
