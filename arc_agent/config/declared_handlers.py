"""Handlers that YAML declares: the keys of `handlers.exec`, `handlers.http` and `handlers.sql`.

What types cannot say of them is checked where the handlers are made (handlers/exec.py, http.py,
sql.py), at the start and by `check-config` alike.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from arc_runtime.config.sections import Section, about

_MebiByte: Final = 1024 * 1024


_PARAMS: Final = about(
    "Its params by name, each with a JSON Schema and perhaps a `default`. Others are refused, and"
    " those without a default are required. Advertised to senders."
)


class LimitsSection(Section, frozen=True, kw_only=True):
    """What a program may use. Absent: what the agent itself may."""

    memory_bytes: (
        Annotated[
            int,
            about("Memory of all its processes; without a scope: addresses of each.", ge=65536),
        ]
        | None
    ) = None
    cpu_seconds: Annotated[int, about("CPU time of one process.", ge=1)] | None = None
    cpu_percent: (
        Annotated[
            int, about("Share of one CPU, 200: two of them. Needs a scope.", ge=1, le=100_000)
        ]
        | None
    ) = None
    file_bytes: Annotated[int, about("The largest file that it may write.", ge=0)] | None = None
    processes: (
        Annotated[
            int,
            about(
                "Processes and threads; without a scope: all of its user's, and not for root.",
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
            "Program and arguments. The argument `{params_file}` becomes the path of a file"
            " that holds the params, `{params.NAME}` one of `params`.",
            min_length=1,
        ),
    ]
    description: Annotated[str | None, about("What the command is for.")] = None
    params: Annotated[dict[str, Any], _PARAMS] | None = None
    stdin: Annotated[
        Literal["params", "none"] | None,
        about(
            "What stands on its standard input. Default: params, none where an argument holds them."
        ),
    ] = None
    output: Annotated[
        Literal["json", "text", "bytes"],
        about("What its standard output is: a JSON value, text, or raw bytes."),
    ] = "json"
    max_output_bytes: Annotated[
        int, about("What is kept of its output; the rest is cut, and said so.", ge=1)
    ] = 16 * _MebiByte
    timeout_seconds: Annotated[float, about("When it is ended.", gt=0)] | None = None
    idempotent: Annotated[
        bool,
        about("Whether a second run does no harm; if not, it is not run again once started."),
    ] = False
    concurrency: Annotated[int, about("How many run at the same time.", ge=1, le=1000)] | None = (
        None
    )
    restarts: Annotated[
        bool,
        about("Whether it may end the agent or reboot the host: that is its success then."),
    ] = False
    kill_after_seconds: Annotated[float, about("Between SIGTERM and SIGKILL.", ge=0, le=600)] = 5.0
    cwd: Annotated[Path | None, about("Where it runs. Default: a directory of its own.")] = None
    env: Annotated[dict[str, str], about("Variables to set.")] = {}
    env_pass: Annotated[
        tuple[str, ...],
        about("The agent's own variables to hand on. All others are kept from it."),
    ] = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
    error_codes: Annotated[
        dict[str, str],
        about('Error codes by exit status, `{"3": "NOT_READY"}`. Others are HANDLER_ERROR.'),
    ] = {}
    user: Annotated[str | None, about("Another user to run as. The agent must be able to.")] = None
    limits: LimitsSection = NO_LIMITS
    isolation: Annotated[
        Literal["auto", "scope", "rlimits", "none"],
        about(
            "What enforces `limits`: a transient scope of systemd, limits of the process, or"
            " nothing. `auto` takes the first that this host has."
        ),
    ] = "auto"


class HttpSection(Section, frozen=True, kw_only=True):
    """A command that asks a service on this host or near it: docs/declared-handlers.md."""

    url: Annotated[
        str,
        about(
            "The service: `http://127.0.0.1:8080`, a fixed path may follow. Nobody else is asked."
        ),
    ]
    path: Annotated[
        str, about("What follows. A segment may be `{params.NAME}`, and is percent-encoded.")
    ] = "/"
    method: Annotated[
        Literal["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"], about("The method.")
    ] = "GET"
    description: Annotated[str | None, about("What the command is for.")] = None
    params: Annotated[dict[str, Any], _PARAMS] = {}
    query: Annotated[
        dict[str, str], about("The query by name; a value may be `{params.NAME}`.")
    ] = {}
    json: Annotated[
        Any,
        about("The request's body: a JSON value in which texts may be `{params.NAME}`."),
    ] = None
    headers: Annotated[dict[str, str], about("Headers, fixed.")] = {}
    header_files: Annotated[
        dict[str, Path],
        about("Headers whose value is in a file, such as `Authorization`. Read at each run."),
    ] = {}
    ca_file: Annotated[Path | None, about("Certificates (PEM) to trust besides the system's.")] = (
        None
    )
    output: Annotated[
        Literal["json", "text", "bytes"],
        about("What the answer is: a JSON value, text, or raw bytes, which are streamed."),
    ] = "json"
    max_response_bytes: Annotated[
        int, about("The largest answer; a larger one is an error.", ge=1)
    ] = 16 * _MebiByte
    timeout_seconds: Annotated[float, about("How long all of it may take.", gt=0)] = 30.0
    idempotent: Annotated[
        bool | None,
        about(
            "Whether a second run does no harm; if not, it is not run again once started. Default:"
            " GET and HEAD are."
        ),
    ] = None
    concurrency: Annotated[int, about("How many run at the same time.", ge=1, le=1000)] | None = (
        None
    )


class SqlSection(Section, frozen=True, kw_only=True):
    """A command that asks a database: docs/declared-handlers.md. One database is named."""

    sqlite: Annotated[Path | None, about("A SQLite file. It is never made.")] = None
    dsn_file: Annotated[
        Path | None,
        about("A file that holds a Postgres DSN (`postgresql://…`). Read at each run."),
    ] = None
    dsn_credential: Annotated[
        str | None, about("A credential of the systemd unit that holds it.")
    ] = None
    statement: Annotated[
        str, about("One statement. `:name` is a param, bound, never pasted in.", min_length=1)
    ]
    description: Annotated[str | None, about("What the command is for.")] = None
    params: Annotated[dict[str, Any], _PARAMS] = {}
    write: Annotated[
        bool, about("Whether it may change anything. If not, the database itself refuses it.")
    ] = False
    format: Annotated[
        Literal["json", "jsonl", "csv"],
        about("One JSON array, an object a line, or CSV with a header line."),
    ] = "json"
    max_rows: Annotated[int, about("More rows are an error.", ge=1)] = 10_000
    max_result_bytes: Annotated[int, about("A larger result is an error.", ge=1)] = 64 * _MebiByte
    timeout_seconds: Annotated[float, about("When the query is interrupted.", gt=0)] = 30.0
    idempotent: Annotated[
        bool | None,
        about(
            "Whether a second run does no harm; if not, it is not run again once started. Default:"
            " it is unless it may `write`."
        ),
    ] = None
    concurrency: Annotated[int, about("How many run at the same time.", ge=1, le=1000)] | None = (
        None
    )
