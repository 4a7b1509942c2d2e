"""The sections of the agent's configuration: every key with its default, bounds and description.

scripts/configuration_docs.py writes docs/configuration.md from them.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Final, Literal

from arc_agent.config.handler_sections import HandlersSection
from arc_protocol.messages.base import CommandTarget, ResourceType
from arc_runtime.config.sections import LogSection, Section, about

_MebiByte: Final = 1024 * 1024


class ServerSection(Section, frozen=True, kw_only=True):
    """The server, and the credential that the agent shows it."""

    url: Annotated[str | None, about("The server, with or without `/v1` at the end. Required.")] = (
        None
    )
    allow_http: Annotated[
        bool,
        about(
            "Allow an `http://` URL off loopback. Other hosts can then read the token and change"
            " commands on the way."
        ),
    ] = False
    token_file: Annotated[
        Path | None,
        about(
            "A file with the bearer token; the agent reads it again when the server refuses the"
            " token. Default: the credential `token` of the systemd unit, if it has one."
        ),
    ] = None
    token: Annotated[
        str | None,
        about("The bearer token itself. A token file takes precedence, and can be replaced."),
    ] = None
    ca_file: Annotated[Path | None, about("The older name of `tls.ca_file`.")] = None
    connect_timeout_seconds: Annotated[
        float, about("The time limit for opening a connection, TLS included.", gt=0, le=300)
    ] = 10.0
    request_timeout_seconds: Annotated[
        float,
        about("The time limit of a request, not counting the wait of a long poll.", gt=0, le=600),
    ] = 30.0
    max_back_off_seconds: Annotated[
        float,
        about("The longest pause between two tries while the server is unreachable.", gt=0, le=30),
    ] = 30.0


class ProxySection(Section, frozen=True, kw_only=True):
    """The way out of this host: docs/network.md. Loopback addresses never use a proxy."""

    url: Annotated[
        str | None,
        about(
            "The proxy for the server and for bodies, `http://proxy.corp:3128`; may hold a user and"
            " a password. Default: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY decide."
        ),
    ] = None
    auth_file: Annotated[
        Path | None,
        about(
            "A file with `user:password` for the proxy; a changed file is read again. Default: the"
            " credential `proxy` of the systemd unit, if it has one."
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
        bool, about("Use the environment's proxy variables where `proxy.url` is not set.")
    ] = True


class TlsSection(Section, frozen=True, kw_only=True):
    """The certificates: docs/network.md. Changed files are read again."""

    ca_file: Annotated[
        Path | None, about("Certificates (PEM) to trust in addition to the system's.")
    ] = None
    ca_only: Annotated[
        bool, about("Trust only `tls.ca_file`, and none of the system's certificates.")
    ] = False
    client_cert: Annotated[
        Path | None,
        about("This host's certificate and its chain (PEM), shown to the server only."),
    ] = None
    client_key: Annotated[
        Path | None,
        about(
            "The key of `tls.client_cert` (PEM, without a password). Default: the key in"
            " `tls.client_cert`."
        ),
    ] = None
    crl_file: Annotated[
        Path | None,
        about(
            "Lists of revoked certificates (PEM). A certificate is then refused if its issuer has"
            " no list here, or only an outdated one."
        ),
    ] = None
    crl_check: Annotated[
        Literal["chain", "leaf"],
        about("Check the whole chain against these lists, or only the server's certificate."),
    ] = "chain"


class TargetSection(Section, frozen=True, kw_only=True):
    """The target that this agent is. Without it: the deployment's default target."""

    resource_id: Annotated[str, about("The target's id.", min_length=1, max_length=256)]
    resource_type: Annotated[
        Literal["daemon", "container", "worker"], about("The target's kind.")
    ] = "daemon"


class LeaseSection(Section, frozen=True, kw_only=True):
    """The leases of commands."""

    seconds: Annotated[
        int, about("The length of a lease; the agent renews it while it works.", ge=1, le=3600)
    ] = 60
    run_on_seconds: Annotated[
        float,
        about(
            "How long a handler runs on after its lease ended because no renewal reached the"
            " server: a server that is down leases the command to no other agent. 0 stops the"
            " handler at once.",
            ge=0,
            le=86_400,
        ),
    ] = 3600.0


class RenewSection(Section, frozen=True, kw_only=True):
    """The renewal of leases."""

    at_most_seconds: Annotated[
        float, about("The longest time between two renewals.", gt=0, le=600)
    ] = 10.0


class PollSection(Section, frozen=True, kw_only=True):
    """The requests for commands."""

    wait_seconds: Annotated[
        float,
        about("How long the server may hold a request until a command is ready.", ge=0, le=60),
    ] = 25.0
    interval_seconds: Annotated[
        float,
        about("The time between two requests to a server that answers at once.", gt=0, le=3600),
    ] = 5.0
    max_interval_seconds: Annotated[
        float,
        about("What that time grows to while no commands come.", gt=0, le=3600),
    ] = 30.0
    jitter: Annotated[float, about("The part by which these times vary at random.", ge=0, le=1)] = (
        0.1
    )


class DrainSection(Section, frozen=True, kw_only=True):
    """The end of the agent."""

    seconds: Annotated[
        float, about("How long running handlers may go on after SIGTERM.", ge=0, le=86_400)
    ] = 30.0
    flush_seconds: Annotated[
        float,
        about(
            "How long finished responses may then take to be delivered; the next start delivers"
            " the others.",
            ge=0,
        ),
    ] = 10.0


class SpoolSection(Section, frozen=True, kw_only=True):
    """Finished responses on disk. The agent takes no command without room for its response."""

    max_bytes: Annotated[int, about("The most that undelivered responses may take.", ge=0)] = (
        1024 * _MebiByte
    )
    min_free_bytes: Annotated[
        int, about("The space that must stay free on the data directory's disk.", ge=0)
    ] = 64 * _MebiByte
    min_free_inodes: Annotated[
        int,
        about("The inodes that must stay free there, if its file system counts them.", ge=0),
    ] = 1024


class TransferSection(Section, frozen=True, kw_only=True):
    """Bodies that travel by presigned URLs. Link-local and metadata addresses are never allowed."""

    allow_hosts: Annotated[
        list[str],
        about(
            "Private hosts (`blobs.corp`, `*.corp`) and networks (`10.2.0.0/16`) that bodies may"
            " travel to and from."
        ),
    ] = []
    public_hosts: Annotated[
        bool, about("Allow every public host, in addition to the server's own.")
    ] = True
    local_dir: Annotated[
        Path | None,
        about(
            "The directory where a server on this host keeps bodies as files. Default: bodies in"
            " files are refused."
        ),
    ] = None
    max_bytes: Annotated[int, about("The largest body that is fetched.", ge=0)] = 4096 * _MebiByte
    stall_seconds: Annotated[
        float,
        about("How long a transfer may stand still before it is tried again.", gt=0, le=600),
    ] = 30.0
    give_up_seconds: Annotated[
        float,
        about(
            "How long the agent tries to fetch params before it releases the command.",
            gt=0,
            le=86_400,
        ),
    ] = 300.0


class PolicySection(Section, frozen=True, kw_only=True):
    """The host's rules about commands: docs/policy.md."""

    file: Annotated[
        Path | None,
        about("The rules (YAML). Default: every command that has a handler may run."),
    ] = None
    approval_seconds: Annotated[
        float,
        about(
            "How long a command waits for `arc-agent approve` before it is denied.",
            gt=0,
            le=7 * 86_400,
        ),
    ] = 3600.0
    show_params: Annotated[
        bool,
        about(
            "Show the params of a command that waits for approval to `arc-agent approvals`. Without"
            " it, their size and SHA-256 alone."
        ),
    ] = True
    approval_hook: Annotated[
        list[str],
        about(
            "A program and its arguments, run without a shell when a command begins to wait for"
            " approval. It gets the request as JSON on standard input, without the params."
        ),
    ] = []
    approval_hook_seconds: Annotated[
        float, about("How long the program may run before it is killed.", gt=0, le=600)
    ] = 10.0
    queue_seconds: Annotated[
        float,
        about(
            "How long a command waits for others of its rule (`at_once`) before it is denied.",
            gt=0,
            le=86_400,
        ),
    ] = 300.0
    max_waiting: Annotated[
        int,
        about("How many commands may wait for either; others are denied.", ge=1, le=1000),
    ] = 50


class SigningSection(Section, frozen=True, kw_only=True):
    """The signatures that this host accepts: docs/signing.md."""

    keys: Annotated[
        Path | None,
        about(
            "Public keys, one `NAME ed25519 KEY` a line: a file, or a directory of `*.pub` files."
            " Default: signatures are not checked."
        ),
    ] = None
    required: Annotated[bool, about("Refuse a command without a signature.")] = False
    any_target: Annotated[
        bool,
        about("On a host with a `target`, accept commands that were signed for no target."),
    ] = False
    host_keys: Annotated[
        list[Path],
        about(
            "Private keys of this host (`arc-agent keys new`), one a file, that decrypt sealed"
            " params."
        ),
    ] = []
    max_age_seconds: Annotated[
        float,
        about(
            "The greatest age of a signature, even if the deadline is later. Used signatures are"
            " remembered as long.",
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

    enabled: Annotated[
        bool, about("Keep the log. A command runs only after its line is written.")
    ] = True
    directory: Annotated[
        Path | None,
        about("The log's directory, one for each agent. Default: `audit` in the data directory."),
    ] = None
    max_bytes: Annotated[
        int, about("The size at which the agent begins another file.", ge=4096)
    ] = 16 * _MebiByte
    max_days: Annotated[
        float, about("The age at which the agent begins another file.", gt=0, le=3660)
    ] = 7.0
    keep: Annotated[
        int, about("How many files are kept at most, the current one included.", ge=1, le=10_000)
    ] = 100
    keep_days: Annotated[
        float,
        about(
            "How long a file is kept after its last line. Files go when a new one begins.",
            gt=0,
            le=36_600,
        ),
    ] = 366.0


class EventsSection(Section, frozen=True, kw_only=True):
    """The progress and log lines of handlers (`ctx.progress`, `ctx.log`) for the sender."""

    enabled: Annotated[bool, about("Send them to the server.")] = True
    level: Annotated[
        Literal["debug", "info", "warning", "error", "none"],
        about("The lowest level that is sent; `none` sends progress only."),
    ] = "info"
    interval_seconds: Annotated[
        float, about("How long events are collected before they are sent.", ge=0.05, le=60)
    ] = 1.0
    buffer_bytes: Annotated[
        int,
        about(
            "The most that the unsent events of a command may take; older lines are dropped and"
            " counted.",
            ge=1024,
            le=64 * _MebiByte,
        ),
    ] = 256 * 1024


class ControlSection(Section, frozen=True, kw_only=True):
    """The socket for an operator on the host: `arc-agent approve`, `pause` and others."""

    socket: Annotated[
        Path | None,
        about(
            "A Unix socket (mode 0660). Default: `control.sock` in $RUNTIME_DIRECTORY, else in"
            " the data directory."
        ),
    ] = None


class WatchdogSection(Section, frozen=True, kw_only=True):
    """The watch over the event loop."""

    blocked_seconds: Annotated[
        float,
        about("A handler that blocks the event loop for longer is logged.", gt=0, le=3600),
    ] = 5.0


class MetricsSection(Section, frozen=True, kw_only=True):
    """Health and figures for a monitoring system on this host: docs/operating.md."""

    listen: Annotated[
        str | None,
        about(
            "The address of GET /healthz, /readyz and /metrics. `arc-agent install` writes"
            " `127.0.0.1:9180`. Default: none."
        ),
    ] = None
    public: Annotated[
        bool,
        about("Allow an address that other hosts reach. Requests need no credential."),
    ] = False


class Config(Section, frozen=True, kw_only=True):
    """The agent's configuration."""

    server: ServerSection = ServerSection()
    proxy: ProxySection = ProxySection()
    tls: TlsSection = TlsSection()
    deployment: (
        Annotated[str, about("The deployment whose commands run here. Required.", max_length=256)]
        | None
    ) = None
    target: TargetSection | None = None
    name: (
        Annotated[
            str,
            about(
                "The agent's name in lists. Default: the host's name. An enrolled agent keeps the"
                " name that it enrolled with.",
                max_length=200,
            ),
        ]
        | None
    ) = None
    data_dir: Annotated[
        Path | None,
        about(
            "The directory of the spool and of temporary files, one for each agent. Default:"
            " $STATE_DIRECTORY, else ~/.local/state/arc-agent."
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
        """Return the deployment, which a checked configuration always has."""
        return self.deployment or ""

    @property
    def command_target(self) -> CommandTarget | None:
        """Return the target in the wire's form."""
        if self.target is None:
            return None
        return CommandTarget(
            resource_id=self.target.resource_id,
            resource_type=ResourceType(self.target.resource_type),
        )

    @property
    def agent_name(self) -> str:
        """Return the name in lists. It is no identity: cloned hosts share it."""
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
"""Sections that a reload cannot change; nor can it change where `handlers` are loaded from."""
