"""The agent's configuration: every key with its default, and what other receivers' variables mean.

YAML, then `ARC_AGENT_…` variables, then the command line. Where none of them speaks, the
`ALIEN_COMMANDS_…` variables that public receivers read do (protocol.md 1.4).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Final, Literal, cast
from urllib.parse import urlsplit

import msgspec

from arc_agent.config.declared_handlers import ExecSection, HttpSection, SqlSection
from arc_protocol.messages.base import CommandTarget, Name, ResourceType
from arc_runtime.config.sections import LogSection, Section, about
from arc_runtime.config.settings import SettingsError, load
from arc_runtime.config.yaml_file import YamlError, read_yaml
from arc_runtime.systemd import credential

PREFIX: Final = "ARC_AGENT"

_Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
_MebiByte: Final = 1024 * 1024


class ServerSection(Section, frozen=True, kw_only=True):
    """Where the server is, and how this agent shows who it is."""

    url: Annotated[str | None, about("The server, with or without `/v1` at the end. Required.")] = (
        None
    )
    token_file: Annotated[
        Path | None,
        about(
            "A file that holds the bearer token; read again when it is refused. Default: the"
            " credential `token` of the systemd unit, if it has one."
        ),
    ] = None
    token: Annotated[
        str | None,
        about("The bearer token itself. A file is better, and wins: it can be replaced."),
    ] = None
    ca_file: Annotated[Path | None, about("The older name of `tls.ca_file`.")] = None
    connect_timeout_seconds: Annotated[
        float, about("How long a connection may take to open, TLS included.", gt=0, le=300)
    ] = 10.0
    request_timeout_seconds: Annotated[
        float, about("How long a request may take, a long poll's wait not counted.", gt=0, le=600)
    ] = 30.0
    max_back_off_seconds: Annotated[
        float,
        about("The longest pause between two tries while it cannot be reached.", gt=0, le=30),
    ] = 30.0


class ProxySection(Section, frozen=True, kw_only=True):
    """How this host gets out: docs/network.md. This machine itself is never asked by a proxy."""

    url: Annotated[
        str | None,
        about(
            "The proxy for the server and for bodies, `http://proxy.corp:3128`; a user and password"
            " may stand in it. Default: what HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY say."
        ),
    ] = None
    auth_file: Annotated[
        Path | None,
        about(
            "A file that holds `user:password` for the proxy; read again when it changes. Default:"
            " the credential `proxy` of the systemd unit, if it has one."
        ),
    ] = None
    except_hosts: Annotated[
        list[str],
        about(
            "Hosts (`arc.corp`, `*.corp`, `arc.corp:8443`) and networks (`10.0.0.0/8`) that are"
            " reached without `proxy.url`."
        ),
    ] = []
    from_environment: Annotated[
        bool, about("Whether the environment's proxy is used where `proxy.url` names none.")
    ] = True


class TlsSection(Section, frozen=True, kw_only=True):
    """Who is trusted, and who this host is: docs/network.md. Changed files are read again."""

    ca_file: Annotated[Path | None, about("Certificates (PEM) to trust besides the system's.")] = (
        None
    )
    ca_only: Annotated[
        bool, about("Whether only `tls.ca_file` is trusted, and none of the system's.")
    ] = False
    client_cert: Annotated[
        Path | None,
        about(
            "This host's own certificate and what it is chained to (PEM), shown to the server and"
            " to nobody else."
        ),
    ] = None
    client_key: Annotated[
        Path | None,
        about("Its key (PEM, without a password). Default: it stands in `tls.client_cert`."),
    ] = None
    crl_file: Annotated[
        Path | None,
        about(
            "Lists of revoked certificates (PEM). With it a certificate whose issuer has no list"
            " here, or an old one, is refused."
        ),
    ] = None
    crl_check: Annotated[
        Literal["chain", "leaf"],
        about("Whether the whole chain is looked up in these lists, or the server's own only."),
    ] = "chain"


class TargetSection(Section, frozen=True, kw_only=True):
    """Which of the deployment's targets this agent is. Absent: the deployment's default target."""

    resource_id: Annotated[str, about("The target's id.", min_length=1, max_length=256)]
    resource_type: Annotated[
        Literal["daemon", "container", "worker"], about("What kind of thing it is.")
    ] = "daemon"


class LeaseSection(Section, frozen=True, kw_only=True):
    """How commands are held."""

    seconds: Annotated[int, about("How long a lease is, until renewed.", ge=1, le=3600)] = 60
    run_on_seconds: Annotated[
        float,
        about(
            "How long a handler runs on past its lease while no renewal can reach the server,"
            " in case the server is down and gives the command to nobody else; 0 stops it at once.",
            ge=0,
            le=86_400,
        ),
    ] = 3600.0


class RenewSection(Section, frozen=True, kw_only=True):
    """How held leases are renewed."""

    at_most_seconds: Annotated[
        float, about("The longest time between two renewals.", gt=0, le=600)
    ] = 10.0


class PollSection(Section, frozen=True, kw_only=True):
    """How work is asked for."""

    wait_seconds: Annotated[
        float, about("How long the server may hold a request until work comes.", ge=0, le=60)
    ] = 25.0
    interval_seconds: Annotated[
        float,
        about("Between two requests to a server that does not hold them.", gt=0, le=3600),
    ] = 5.0
    max_interval_seconds: Annotated[
        float, about("The same, when nothing has come for a while.", gt=0, le=3600)
    ] = 30.0
    jitter: Annotated[float, about("By how much these two vary.", ge=0, le=1)] = 0.1


class DrainSection(Section, frozen=True, kw_only=True):
    """How the agent stops."""

    seconds: Annotated[
        float, about("What running handlers get to finish after SIGTERM.", ge=0, le=86_400)
    ] = 30.0
    flush_seconds: Annotated[
        float,
        about("What finished responses then get to be delivered; later: at the next start.", ge=0),
    ] = 10.0


class SpoolSection(Section, frozen=True, kw_only=True):
    """Finished responses on disk. No lease is asked for when there is no room for its result."""

    max_bytes: Annotated[int, about("What undelivered responses may take.", ge=0)] = (
        1024 * _MebiByte
    )
    min_free_bytes: Annotated[
        int, about("What must stay free on the disk of the data directory.", ge=0)
    ] = 64 * _MebiByte
    min_free_inodes: Annotated[
        int,
        about("How many files its file system must still be able to take, if it counts.", ge=0),
    ] = 1024


class TransferSection(Section, frozen=True, kw_only=True):
    """Bodies that travel by presigned URLs. Link-local and metadata addresses are never allowed."""

    allow_hosts: Annotated[
        list[str],
        about(
            "Hosts (`blobs.corp`, `*.corp`) and networks (`10.2.0.0/16`) that bodies may go to"
            " although they are private."
        ),
    ] = []
    public_hosts: Annotated[
        bool, about("Whether any public host is allowed, as well as the server's own.")
    ] = True
    local_dir: Annotated[
        Path | None,
        about("Where a server on the same host keeps bodies as files. Absent: files are refused."),
    ] = None
    max_bytes: Annotated[int, about("The largest body that is fetched.", ge=0)] = 4096 * _MebiByte
    stall_seconds: Annotated[
        float, about("How long a transfer may stand still before it is tried again.", gt=0, le=600)
    ] = 30.0
    give_up_seconds: Annotated[
        float,
        about("How long params are tried before the command is handed back.", gt=0, le=86_400),
    ] = 300.0


class HandlerSettings(Section, frozen=True, kw_only=True):
    """What this host says of one handler, over what its code says."""

    timeout_seconds: Annotated[float, about("The longest that it may run.", gt=0)] | None = None
    concurrency: (
        Annotated[
            int,
            about("How many run at the same time; others wait without a slot.", ge=1, le=1000),
        ]
        | None
    ) = None
    idempotent: (
        Annotated[
            bool,
            about(
                "Whether it may run again though it may have been executed. If not, such a command"
                " is answered with MAYBE_EXECUTED."
            ),
        ]
        | None
    ) = None


class HandlersSection(Section, frozen=True, kw_only=True):
    """What the agent can do."""

    modules: Annotated[
        list[str], about("Python modules, or paths of .py files, that hold handlers.")
    ] = []
    path: Annotated[list[Path], about("Directories to look for these modules in, first.")] = []
    entry_points: Annotated[
        bool, about("Whether installed packages may add handlers (`arc_agent.handlers`).")
    ] = True
    strict: Annotated[
        bool, about("Whether an entry point that fails to import stops the agent.")
    ] = False
    settings: Annotated[
        dict[str, HandlerSettings], about("What is otherwise than in their code, by name.")
    ] = {}
    max_waiting: Annotated[
        int,
        about(
            "How many commands may be held that wait for their handler or for another try; then"
            " no more are asked for.",
            ge=1,
            le=1000,
        ),
    ] = 50
    lifespan_seconds: Annotated[
        float, about("How long a lifespan may take to open, and to close.", gt=0, le=3600)
    ] = 30.0
    journal_days: Annotated[
        float,
        about("How long it is remembered which commands were started here.", gt=0, le=3650),
    ] = 30.0
    exec: Annotated[dict[str, ExecSection], about("Commands that run programs, by name.")] = {}
    http: Annotated[
        dict[str, HttpSection], about("Commands that ask a service on this host, by name.")
    ] = {}
    sql: Annotated[dict[str, SqlSection], about("Commands that ask a database, by name.")] = {}
    timeout_seconds: (
        Annotated[float, about("The longest that any handler may run.", gt=0)] | None
    ) = None
    grace_seconds: Annotated[
        float, about("What a cancelled handler gets before it is abandoned.", ge=0, le=600)
    ] = 5.0
    max_schema_bytes: Annotated[
        int,
        about(
            "How large a handler's schema may be that the server is told; 0: it is told none.",
            ge=0,
            le=256 * 1024,
        ),
    ] = 16 * 1024
    send_tracebacks: Annotated[
        bool, about("Whether senders see the traceback of a handler that failed.")
    ] = False


class PolicySection(Section, frozen=True, kw_only=True):
    """What this host lets senders do: docs/policy.md."""

    file: Annotated[
        Path | None,
        about("The host's rules (YAML). Absent: everything that has a handler is allowed."),
    ] = None
    approval_seconds: Annotated[
        float,
        about(
            "How long a command waits for `arc-agent approve` before it is denied.",
            gt=0,
            le=7 * 86_400,
        ),
    ] = 3600.0
    queue_seconds: Annotated[
        float,
        about(
            "How long a command waits for others of its rule (`at_once`) before it is denied.",
            gt=0,
            le=86_400,
        ),
    ] = 300.0
    max_waiting: Annotated[
        int, about("How many commands may wait like this; more are denied.", ge=1, le=1000)
    ] = 50


class SigningSection(Section, frozen=True, kw_only=True):
    """Which signatures of senders count here: docs/signing.md."""

    keys: Annotated[
        Path | None,
        about(
            "Public keys (`NAME ed25519 KEY`, a line each): a file, or a directory whose `*.pub`"
            " files are read. Absent: signatures are not looked at."
        ),
    ] = None
    required: Annotated[bool, about("Whether a command without a signature is refused.")] = False
    any_target: Annotated[
        bool,
        about(
            "Whether a host with a `target` also runs what was signed for no target in particular."
        ),
    ] = False
    host_keys: Annotated[
        list[Path],
        about(
            "Private keys of this host (`arc-agent keys new`), a file each, to read sealed params"
            " with."
        ),
    ] = []
    max_age_seconds: Annotated[
        float,
        about(
            "How old a signature may be, whatever its deadline. As long it is remembered.",
            gt=0,
            le=366 * 86_400,
        ),
    ] = 86_400.0
    skew_seconds: Annotated[
        float,
        about("How far the clocks of sender and host may differ.", ge=0, le=86_400),
    ] = 300.0


class AuditSection(Section, frozen=True, kw_only=True):
    """The log of every decision about a command: docs/audit.md."""

    enabled: Annotated[bool, about("Whether it is kept. No line, no command.")] = True
    directory: Annotated[
        Path | None,
        about("Where its files are; one agent each. Default: `audit` in the data directory."),
    ] = None
    max_bytes: Annotated[
        int, about("How large a file may grow before the next is begun.", ge=4096)
    ] = 16 * _MebiByte
    keep: Annotated[
        int, about("How many files are kept, the current one included.", ge=1, le=10_000)
    ] = 10


class EventsSection(Section, frozen=True, kw_only=True):
    """What handlers say while they run, `ctx.progress` and `ctx.log`, for the command's sender."""

    enabled: Annotated[bool, about("Whether any of it leaves this host.")] = True
    level: Annotated[
        Literal["debug", "info", "warning", "error", "none"],
        about("Lines of this level and above are sent; `none`: progress alone."),
    ] = "info"
    interval_seconds: Annotated[
        float, about("How long what is said is collected before it is sent.", ge=0.05, le=60)
    ] = 1.0
    buffer_bytes: Annotated[
        int,
        about(
            "What a command may have said and not sent yet; older lines are dropped and counted.",
            ge=1024,
            le=64 * _MebiByte,
        ),
    ] = 256 * 1024


class ControlSection(Section, frozen=True, kw_only=True):
    """How an operator on the host speaks to the agent: `arc-agent approve`, `pause` and so on."""

    socket: Annotated[
        Path | None,
        about(
            "A Unix socket (mode 0660). Default: `control.sock` in $RUNTIME_DIRECTORY, else in"
            " the data directory."
        ),
    ] = None


class WatchdogSection(Section, frozen=True, kw_only=True):
    """What is watched besides leases."""

    blocked_seconds: Annotated[
        float, about("How long a handler may block the event loop unnoticed.", gt=0, le=3600)
    ] = 5.0


class MetricsSection(Section, frozen=True, kw_only=True):
    """Health and figures for a monitoring system on this host: docs/operating.md."""

    listen: Annotated[
        str | None,
        about(
            "Where GET /healthz, /readyz and /metrics are answered, `127.0.0.1:9180`; needs the"
            " extra `metrics`. Absent: nowhere."
        ),
    ] = None
    public: Annotated[
        bool,
        about("Whether that may be an address which others reach: nobody is asked who they are."),
    ] = False


class Config(Section, frozen=True, kw_only=True):
    """The whole of it."""

    server: ServerSection = ServerSection()
    proxy: ProxySection = ProxySection()
    tls: TlsSection = TlsSection()
    deployment: (
        Annotated[
            str, about("The deployment whose commands are run here. Required.", max_length=256)
        ]
        | None
    ) = None
    target: TargetSection | None = None
    name: (
        Annotated[
            str,
            about("What the agent is called in lists. Default: the host's name.", max_length=200),
        ]
        | None
    ) = None
    data_dir: Annotated[
        Path | None,
        about(
            "Spool and temporary files; one agent each. Default: $STATE_DIRECTORY, else"
            " ~/.local/state/arc-agent."
        ),
    ] = None
    max_concurrent: Annotated[
        int, about("How many commands run at the same time.", ge=1, le=1000)
    ] = 4
    lease: LeaseSection = LeaseSection()
    renew: RenewSection = RenewSection()
    poll: PollSection = PollSection()
    drain: DrainSection = DrainSection()
    spool: SpoolSection = SpoolSection()
    transfer: TransferSection = TransferSection()
    handlers: HandlersSection = HandlersSection()
    policy: PolicySection = PolicySection()
    signing: SigningSection = SigningSection()
    audit: AuditSection = AuditSection()
    events: EventsSection = EventsSection()
    control: ControlSection = ControlSection()
    watchdog: WatchdogSection = WatchdogSection()
    metrics: MetricsSection = MetricsSection()
    log: LogSection = LogSection()

    @property
    def deployment_id(self) -> str:
        """The deployment of a checked configuration."""
        return self.deployment or ""

    @property
    def command_target(self) -> CommandTarget | None:
        """The target as the wire wants it."""
        if self.target is None:
            return None
        return CommandTarget(
            resource_id=self.target.resource_id,
            resource_type=ResourceType(self.target.resource_type),
        )

    @property
    def agent_name(self) -> str:
        """What the agent is called: no identity, a host may be cloned."""
        return self.name or socket.gethostname() or "agent"


NEEDS_RESTART: Final = (
    "server",
    "deployment",
    "target",
    "name",
    "data_dir",
    "audit",
    "control",
    "metrics",
)
"""Sections that a reload cannot change, and of `handlers` the modules, path and entry points."""


def read(
    file: Path | None,
    environ: Mapping[str, str],
    overrides: Mapping[str, Any] | None = None,
    *,
    needs_deployment: bool = True,
) -> Config:
    """The checked configuration. Raises SettingsError, naming the key."""

    def is_set(key: str) -> bool:
        return (
            _variable(key) in environ
            or (overrides or {}).get(key) is not None
            or _is_in_file(file, key)
        )

    has_token = is_set("server.token") or is_set("server.token_file")
    given = dict(environ)
    for key, value in _from_receivers(environ):
        if not is_set(key) and not (has_token and key.startswith("server.token")):
            given[_variable(key)] = value
            has_token = has_token or key.startswith("server.token")
    token_of_unit = credential("token", environ)
    if token_of_unit is not None and not has_token:
        given[_variable("server.token_file")] = token_of_unit
    proxy_of_unit = credential("proxy", environ)
    if proxy_of_unit is not None and not is_set("proxy.auth_file"):
        given[_variable("proxy.auth_file")] = proxy_of_unit
    config = load(Config, prefix=PREFIX, file=file, environ=given, overrides=overrides)
    _check(config, needs_deployment=needs_deployment)
    return config


def data_directory(config: Config, environ: Mapping[str, str]) -> Path:
    """Where spool and temporary files go."""
    if config.data_dir is not None:
        return config.data_dir.expanduser().absolute()
    from_systemd = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if from_systemd:
        return Path(from_systemd)
    base = environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(base) / "arc-agent"


def audit_directory(config: Config, environ: Mapping[str, str]) -> Path:
    """Where the audit log is."""
    if config.audit.directory is not None:
        return config.audit.directory.expanduser().absolute()
    return data_directory(config, environ) / "audit"


def control_socket(config: Config, environ: Mapping[str, str]) -> Path:
    """Where the agent listens for its operator."""
    if config.control.socket is not None:
        return config.control.socket.expanduser().absolute()
    from_systemd = environ.get("RUNTIME_DIRECTORY", "").split(":")[0]
    directory = Path(from_systemd) if from_systemd else data_directory(config, environ)
    return directory / "control.sock"


def listen_address(listen: str) -> tuple[str, int]:
    """Host and port of `127.0.0.1:9180` or `[::1]:9180`. Raises ValueError."""
    host, colon, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
    is_port = port.isascii() and port.isdecimal() and int(port) <= 65_535
    if not (colon and is_port and (host == "localhost" or _is_address(host))):
        raise ValueError("Expected an address and a port such as 127.0.0.1:9180")
    return host, int(port)


def _is_address(host: str) -> bool:
    """Whether it is an IP address, and no name."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _check_metrics(metrics: MetricsSection) -> None:
    """Figures are for this host alone, unless told otherwise. Raises SettingsError."""
    if metrics.listen is None:
        return
    try:
        host, _ = listen_address(metrics.listen)
    except ValueError as error:
        raise SettingsError(str(error), key="metrics.listen", source=None) from None
    reason = None
    if host != "localhost" and not ip_address(host).is_loopback and not metrics.public:
        reason = "not on loopback: others could read it; metrics.public allows that"
    elif find_spec("prometheus_client") is None:
        reason = "needs the extra: pip install 'arc-commands[metrics]'"
    if reason is not None:
        raise SettingsError(reason, key="metrics.listen", source=None)


def base_url(url: str) -> tuple[str, str]:
    """The server's URL without `/v1` and slashes at its end, and its query (with `?`) or nothing.

    Raises ValueError when it is not an http(s) URL, or carries a user or password.
    """
    parts = urlsplit(url.strip())
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
        raise ValueError("Expected an http(s) URL such as https://arc.example.com")
    if "@" in parts.netloc:
        raise ValueError("a user or password does not belong in the URL")
    path = "/".join(part for part in parts.path.split("/") if part)
    path = path.removesuffix("v1").rstrip("/") if path == "v1" or path.endswith("/v1") else path
    base = f"{parts.scheme}://{parts.netloc}" + (f"/{path}" if path else "")
    return base, f"?{parts.query}" if parts.query else ""


def _variable(key: str) -> str:
    """The environment variable of a key."""
    return f"{PREFIX}_{key.upper().replace('.', '_')}"


def _check(config: Config, *, needs_deployment: bool) -> None:
    """What types cannot say. Raises SettingsError."""
    if not config.server.url or not config.server.url.strip():
        raise SettingsError("is required: the server's URL", key="server.url", source=None)
    try:
        base_url(config.server.url)
    except ValueError as error:
        raise SettingsError(str(error), key="server.url", source=None) from None
    if needs_deployment or config.deployment is not None:
        _check_name(config.deployment, "deployment", "is required: the deployment's id")
    if config.name is not None:
        _check_name(config.name, "name", "must not be empty")
    if config.target is not None:
        _check_name(config.target.resource_id, "target.resource_id", "must not be empty")
        if ":" in config.target.resource_id:
            raise SettingsError("must not contain `:`", key="target.resource_id", source=None)
    if config.server.ca_file is not None and config.tls.ca_file is not None:
        raise SettingsError("tls.ca_file is set too", key="server.ca_file", source=None)
    if config.poll.max_interval_seconds < config.poll.interval_seconds:
        raise SettingsError(
            "must not be below poll.interval_seconds", key="poll.max_interval_seconds", source=None
        )
    if config.signing.required and config.signing.keys is None:
        raise SettingsError(
            "needs signing.keys: nothing would run here", key="signing.required", source=None
        )
    if config.signing.host_keys and config.signing.keys is None:
        raise SettingsError(
            "needs signing.keys: only signed params can be sealed",
            key="signing.host_keys",
            source=None,
        )
    _check_metrics(config.metrics)
    for kind in ("exec", "http", "sql"):
        for name in getattr(config.handlers, kind):
            _check_name(name, f"handlers.{kind}.{name}", "a command needs a name")


def _check_name(value: str | None, key: str, otherwise: str) -> None:
    """Names as the wire allows them."""
    if value is None or not value.strip():
        raise SettingsError(otherwise, key=key, source=None)
    try:
        msgspec.convert(value, Name)
    except msgspec.ValidationError:
        raise SettingsError(
            "1 to 256 characters without control characters", key=key, source=None
        ) from None


# What public receivers are configured with

_RECEIVERS: Final[Mapping[str, str]] = {
    "ALIEN_COMMANDS_URL": "server.url",
    "ALIEN_COMMANDS_TOKEN": "server.token",
    "ALIEN_COMMANDS_TOKEN_FILE": "server.token_file",
    "ALIEN_DEPLOYMENT_ID": "deployment",
    "ALIEN_COMMANDS_TARGET_RESOURCE_ID": "target.resource_id",
    "ALIEN_COMMANDS_TARGET_RESOURCE_TYPE": "target.resource_type",
    "ALIEN_COMMANDS_POLL_INTERVAL_MS": "poll.interval_seconds",
    "ALIEN_COMMANDS_POLL_MAX_INTERVAL_MS": "poll.max_interval_seconds",
    "ALIEN_COMMANDS_POLL_JITTER": "poll.jitter",
    "ALIEN_COMMANDS_LEASE_SECONDS": "lease.seconds",
    "ALIEN_COMMANDS_MAX_LEASES": "max_concurrent",
    "ALIEN_COMMANDS_DRAIN_TIMEOUT_MS": "drain.seconds",
}


def _from_receivers(environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Our key and its value for each of the receivers' variables that is set."""
    for variable, key in _RECEIVERS.items():
        value = environ.get(variable, "").strip()
        if not value:
            continue
        if variable == "ALIEN_COMMANDS_TOKEN_FILE" and environ.get("ALIEN_COMMANDS_TOKEN"):
            continue  # the literal token wins
        if variable.endswith("_MS"):
            if not value.isdecimal():
                raise SettingsError(
                    "Expected milliseconds", key=key, source=f"the environment variable {variable}"
                )
            value = str(int(value) / 1000)
        yield key, value


def _is_in_file(file: Path | None, key: str) -> bool:
    """Whether the file sets the key. A file that cannot be read is somebody else's error."""
    if file is None:
        return False
    try:
        node: Any = read_yaml(file)
    except YamlError:
        return False
    for name in key.split("."):
        if not isinstance(node, dict):
            return False
        node = cast("dict[str, Any]", node).get(name)
    return node is not None
