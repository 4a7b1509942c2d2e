"""The sections of handlers that YAML declares: `handlers.exec`, `handlers.http`, `handlers.sql`.

handlers/declared/ makes the handlers, and checks then what types cannot express: at the start of
the agent and in `check-config` alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from arc_runtime.config.sections import Section, about

_MebiByte: Final = 1024 * 1024

_DESCRIPTION: Final = about("The command's purpose, for senders.")
_PARAMS: Final = about(
    "The params by name, each a JSON Schema, perhaps with a `default`. Params without a default"
    " are required, others are refused. Senders see the schema."
)
_CONCURRENCY: Final = about("How many commands run at the same time.", ge=1, le=1000)


class LimitsSection(Section, frozen=True, kw_only=True):
    """The limits of a program. Without a limit, the agent's own applies."""

    memory_bytes: (
        Annotated[
            int,
            about(
                "Memory of all its processes; without a scope: address space of each process.",
                ge=65536,
            ),
        ]
        | None
    ) = None
    cpu_seconds: Annotated[int, about("CPU time of one process.", ge=1)] | None = None
    cpu_percent: (
        Annotated[
            int,
            about("Share of one CPU; 200 is two CPUs. Needs a scope.", ge=1, le=100_000),
        ]
        | None
    ) = None
    file_bytes: Annotated[int, about("The largest file that it may write.", ge=0)] | None = None
    processes: (
        Annotated[
            int,
            about(
                "Processes and threads; without a scope: all of its user's, and no limit for root.",
                ge=1,
            ),
        ]
        | None
    ) = None
    open_files: Annotated[int, about("Open files of one process.", ge=4)] | None = None


NO_LIMITS: Final = LimitsSection()


class ExecSection(Section, frozen=True, kw_only=True):
    """A command that runs a program: docs/declared-handlers.md."""

    argv: Annotated[
        list[str],
        about(
            "The program and its arguments. The argument `{params_file}` becomes the path of a file"
            " that holds the params, `{params.NAME}` becomes one of `params`.",
            min_length=1,
        ),
    ]
    description: Annotated[str | None, _DESCRIPTION] = None
    params: Annotated[dict[str, Any], _PARAMS] | None = None
    stdin: Annotated[
        Literal["params", "none"] | None,
        about(
            "The program's standard input. Default: the params, or none where an argument holds"
            " them."
        ),
    ] = None
    output: Annotated[
        Literal["json", "text", "bytes"],
        about("The kind of its standard output: a JSON value, text, or raw bytes."),
    ] = "json"
    max_output_bytes: Annotated[
        int,
        about("How much of its output is kept; the rest is cut, and the result says so.", ge=1),
    ] = 16 * _MebiByte
    timeout_seconds: Annotated[float, about("The time limit of a run.", gt=0)] | None = None
    idempotent: Annotated[
        bool,
        about("A second run does no harm. If false, a command that was started is not run again."),
    ] = False
    concurrency: Annotated[int, _CONCURRENCY] | None = None
    restarts: Annotated[
        bool,
        about("The program may end the agent or reboot the host, and has then succeeded."),
    ] = False
    kill_after_seconds: Annotated[
        float, about("The time between SIGTERM and SIGKILL.", ge=0, le=600)
    ] = 5.0
    cwd: Annotated[
        Path | None, about("The working directory. Default: a new directory for each run.")
    ] = None
    env: Annotated[dict[str, str], about("Environment variables to set.")] = {}
    env_pass: Annotated[
        tuple[str, ...],
        about("The agent's own variables to pass on. The program gets no others."),
    ] = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
    error_codes: Annotated[
        dict[str, str],
        about('Error codes by exit status, `{"3": "NOT_READY"}`. Others give HANDLER_ERROR.'),
    ] = {}
    user: Annotated[str | None, about("Another user to run as. The agent must be allowed to.")] = (
        None
    )
    limits: LimitsSection = NO_LIMITS
    isolation: Annotated[
        Literal["auto", "scope", "rlimits", "none"],
        about(
            "How `limits` are enforced: by a transient scope of systemd, by limits of the process,"
            " or not at all. `auto` takes the first that this host has."
        ),
    ] = "auto"


class HttpSection(Section, frozen=True, kw_only=True):
    """A command that calls an HTTP service on this host or near it: docs/declared-handlers.md."""

    url: Annotated[
        str,
        about(
            "The service, `http://127.0.0.1:8080`, perhaps with a fixed path. Requests go nowhere"
            " else."
        ),
    ]
    path: Annotated[
        str,
        about("The path after the URL. A segment may be `{params.NAME}`, and is percent-encoded."),
    ] = "/"
    method: Annotated[
        Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], about("The method.")
    ] = "GET"
    description: Annotated[str | None, _DESCRIPTION] = None
    params: Annotated[dict[str, Any], _PARAMS] = {}
    query: Annotated[
        dict[str, str], about("The query by name; a value may be `{params.NAME}`.")
    ] = {}
    json: Annotated[
        Any,
        about("The request's body: a JSON value in which texts may be `{params.NAME}`."),
    ] = None
    headers: Annotated[dict[str, str], about("Headers with fixed values.")] = {}
    header_files: Annotated[
        dict[str, Path],
        about("Headers whose value is in a file, such as `Authorization`. Read at each run."),
    ] = {}
    ca_file: Annotated[
        Path | None, about("Certificates (PEM) to trust in addition to the system's.")
    ] = None
    output: Annotated[
        Literal["json", "text", "bytes"],
        about("The kind of the answer: a JSON value, text, or raw bytes, which are streamed."),
    ] = "json"
    max_response_bytes: Annotated[
        int, about("The largest answer; a larger one is an error.", ge=1)
    ] = 16 * _MebiByte
    timeout_seconds: Annotated[float, about("The time limit of the whole request.", gt=0)] = 30.0
    idempotent: Annotated[
        bool | None,
        about(
            "A second run does no harm. If false, a command that was started is not run again."
            " Default: true for GET and HEAD."
        ),
    ] = None
    concurrency: Annotated[int, _CONCURRENCY] | None = None


class SqlSection(Section, frozen=True, kw_only=True):
    """A command that queries one database: docs/declared-handlers.md."""

    sqlite: Annotated[Path | None, about("A SQLite file, which must exist.")] = None
    dsn_file: Annotated[
        Path | None,
        about("A file with a Postgres DSN (`postgresql://…`). Read at each run."),
    ] = None
    dsn_credential: Annotated[
        str | None, about("A credential of the systemd unit that holds the DSN.")
    ] = None
    statement: Annotated[
        str,
        about("One statement. `:name` is a param; it is bound, never pasted in.", min_length=1),
    ]
    description: Annotated[str | None, _DESCRIPTION] = None
    params: Annotated[dict[str, Any], _PARAMS] = {}
    write: Annotated[bool, about("Allow changes. If false, the database itself refuses them.")] = (
        False
    )
    format: Annotated[
        Literal["json", "jsonl", "csv"],
        about("One JSON array, one object a line, or CSV with a header line."),
    ] = "json"
    max_rows: Annotated[int, about("The most rows; more are an error.", ge=1)] = 10_000
    max_result_bytes: Annotated[int, about("The largest result; more is an error.", ge=1)] = (
        64 * _MebiByte
    )
    timeout_seconds: Annotated[float, about("The time limit of the query.", gt=0)] = 30.0
    idempotent: Annotated[
        bool | None,
        about(
            "A second run does no harm. If false, a command that was started is not run again."
            " Default: true unless `write` is set."
        ),
    ] = None
    concurrency: Annotated[int, _CONCURRENCY] | None = None
