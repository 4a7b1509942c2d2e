"""The keys of the server's configuration, each with its default, bounds and purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

from arc_protocol.messages.base import Name, ResourceType
from arc_protocol.messages.bodies import DEFAULT_INLINE_BYTES
from arc_runtime.config.sections import LogSection, Section, about
from arc_server.config.metrics_section import ServerMetricsSection
from arc_server.config.oidc_section import OidcSection
from arc_server.http.limits import HttpLimits

DAY_SECONDS: Final = 86_400
MAX_URL_SECONDS: Final = 366 * DAY_SECONDS
MAX_KEPT_SECONDS: Final = 36_600 * DAY_SECONDS


class ServerTlsSection(Section, frozen=True, kw_only=True):
    """TLS: docs/server.md. Changed files are read again, and so they are on SIGHUP."""

    cert_file: Annotated[
        Path | None,
        about("The server's certificate and its chain (PEM). With it the server speaks HTTPS."),
    ] = None
    key_file: Annotated[
        Path | None,
        about(
            "The key of `tls.cert_file` (PEM, without a password). Default: the key in"
            " `tls.cert_file`."
        ),
    ] = None
    client_ca_file: Annotated[
        Path | None,
        about(
            "Certificates (PEM) of authorities. Each client must then show a certificate of one of"
            " them, and its token as well."
        ),
    ] = None
    check_seconds: Annotated[
        float, about("How often the server checks whether these files have changed.", gt=0, le=3600)
    ] = 10.0
    behind_proxy: Annotated[
        bool,
        about(
            "Serve plain HTTP off loopback: clients reach the server only through a proxy that ends"
            " TLS, and no one listens between the two."
        ),
    ] = False


class AuthSection(Section, frozen=True, kw_only=True):
    """Authentication of callers."""

    disabled: Annotated[
        bool, about("Treat every caller as an admin (`--no-auth`). Only for loopback addresses.")
    ] = False
    token_cache_seconds: Annotated[
        float,
        about(
            "How long the look-up of a token is remembered, unless a revocation ends it.",
            ge=0,
            le=300,
        ),
    ] = 5.0
    revocation_seconds: Annotated[
        float,
        about(
            "How often the server checks for revoked tokens and credentials. A revocation takes"
            " effect within this time, also on requests that wait.",
            gt=0,
            le=60,
        ),
    ] = 1.0


class EnrolmentSection(Section, frozen=True, kw_only=True):
    """Enrolled agents and their access tokens: docs/enrolment.md."""

    access_seconds: Annotated[
        float,
        about(
            "The life of an access token. Agents fetch the next one at two thirds of it.",
            ge=1,
            le=DAY_SECONDS,
        ),
    ] = 3600.0
    key_seconds: Annotated[
        float,
        about(
            "The life of an agent's key. At two thirds of it the agent makes a new one. An older"
            " key stays good for an agent that was off.",
            ge=1,
            le=MAX_URL_SECONDS,
        ),
    ] = 90.0 * DAY_SECONDS
    key_overlap_seconds: Annotated[
        float,
        about(
            "How long the previous key stays good after the first use of a new one.",
            ge=0,
            le=MAX_URL_SECONDS,
        ),
    ] = float(DAY_SECONDS)
    max_per_second: Annotated[
        float,
        about(
            "The most enrolments a second by one enrolment token, and the most access tokens and"
            " new keys of all agents together. More get a 429.",
            gt=0,
            le=100_000,
        ),
    ] = 200.0


class LeasesSection(Section, frozen=True, kw_only=True):
    """Leases."""

    max_seconds: Annotated[
        int,
        about("The longest lease. A request for a longer one gets this.", ge=1, le=MAX_URL_SECONDS),
    ] = DAY_SECONDS
    max_per_request: Annotated[
        int,
        about(
            "The most leases of one request. A request for more gets these: a longer answer makes"
            " other deployments wait.",
            ge=1,
            le=1000,
        ),
    ] = 100
    max_answer_bytes: Annotated[
        int,
        about(
            "The most params in bytes that one lease request gets inline. The first command always"
            " goes out.",
            ge=1,
            le=1 << 30,
        ),
    ] = 8 << 20
    outage_grace_seconds: Annotated[
        float,
        about(
            "How long leases that lapsed while the server was down stay renewable once it is back."
            " Make it longer than the longest back-off of the agents.",
            ge=0,
            le=3600,
        ),
    ] = 35.0


class CommandSection(Section, frozen=True, kw_only=True):
    """Limits of commands and their bodies."""

    inline_bytes: Annotated[
        int,
        about(
            "Bodies up to this size travel in messages. Larger ones go to blob storage.",
            ge=0,
            le=16 << 20,
        ),
    ] = DEFAULT_INLINE_BYTES
    max_blob_bytes: Annotated[
        int,
        about("The largest body that may be uploaded. A larger one gets a 413.", ge=1, le=1 << 45),
    ] = 5 << 30
    default_max_attempts: Annotated[
        int,
        about("The attempts of a command that does not set `maxAttempts`.", ge=1, le=10_000),
    ] = 5
    max_attempts: Annotated[
        int, about("The most attempts that a command may ask for.", ge=1, le=10_000)
    ] = 100
    list_page: Annotated[
        int, about("The commands on a page of a list that sets no `limit`.", ge=1, le=10_000)
    ] = 100
    max_list_page: Annotated[int, about("The most commands on a page.", ge=1, le=10_000)] = 1000
    kept_event_lines: Annotated[
        int,
        about(
            "The last event lines of a command that are kept.",
            ge=1,
            le=100_000,
        ),
    ] = 1000
    idempotency_key_seconds: Annotated[
        float,
        about(
            "The shortest life of an idempotency key. It never ends before its command.",
            ge=DAY_SECONDS,
            le=MAX_URL_SECONDS,
        ),
    ] = float(DAY_SECONDS)


class UrlSection(Section, frozen=True, kw_only=True):
    """The life of signed URLs."""

    response_seconds: Annotated[
        float,
        about(
            "URLs that a response is uploaded and submitted by. Make it longer than the outages"
            " that a finished response must survive.",
            ge=60,
            le=MAX_URL_SECONDS,
        ),
    ] = 7.0 * DAY_SECONDS
    upload_seconds: Annotated[
        float, about("URLs that params are uploaded by.", ge=60, le=MAX_URL_SECONDS)
    ] = 3600.0
    download_seconds: Annotated[
        float,
        about(
            "URLs that bodies are downloaded by. Each read makes a fresh one.",
            ge=60,
            le=MAX_URL_SECONDS,
        ),
    ] = 3600.0


class TargetsSection(Section, frozen=True, kw_only=True):
    """Registration of deployments and targets."""

    auto_register: Annotated[
        bool | None,
        about(
            "Register deployments and targets when a request first names them: true for every"
            " caller, false for none. By default for admins only, and for every caller with"
            " `--no-auth`. Tokens and enrolments register what they are bound to in any case."
        ),
    ] = None
    max_per_deployment: Annotated[
        int,
        about(
            "The most targets of a deployment that register themselves. `arc-server target remove`"
            " makes room.",
            ge=1,
            le=10_000,
        ),
    ] = 100


class QuotaSection(Section, frozen=True, kw_only=True):
    """The most that one deployment may have. What would be more gets a 429 QUOTA_EXCEEDED that
    names the quota. Responses of agents are taken in any case."""

    max_live_commands: Annotated[
        int, about("The most commands that have not ended.", ge=1, le=1 << 40)
    ] = 200_000
    max_open_uploads: Annotated[
        int, about("The most commands that wait for the upload of their params.", ge=1, le=1 << 40)
    ] = 1_000
    max_stored_bytes: Annotated[
        int,
        about(
            "The most bytes of bodies, events and registrations. Uploads count from their"
            " announcement on, those of unannounced size as they arrive. Events are dropped once"
            " three quarters are used up.",
            ge=1,
            le=1 << 60,
        ),
    ] = 50 << 30
    max_idempotency_keys: Annotated[
        int,
        about(
            "The most idempotency keys. One lives for `commands.idempotency_key_seconds` or more.",
            ge=1,
            le=1 << 40,
        ),
    ] = 10_000_000
    max_agents: Annotated[
        int,
        about(
            "The most registered agents; each start of one counts. Past it a new one takes the"
            " place of one that was not seen for an hour.",
            ge=1,
            le=1 << 40,
        ),
    ] = 20_000


class AgentSection(Section, frozen=True, kw_only=True):
    """The list of agents."""

    silent_seconds: Annotated[
        float,
        about(
            "How long an agent may give no sign of life before it counts as gone. Agents give one"
            " every 30 s, and with each long poll.",
            ge=1,
            le=DAY_SECONDS,
        ),
    ] = 90.0
    gone_listed_seconds: Annotated[
        float,
        about(
            "How long an agent stays in the list after it was last seen; `arc agents --all` lists"
            " older ones.",
            ge=1,
            le=MAX_URL_SECONDS,
        ),
    ] = 1.0 * DAY_SECONDS
    listed_seconds: Annotated[
        float,
        about(
            "How long `arc agents --all` lists an agent after it was last seen.",
            ge=1,
            le=MAX_URL_SECONDS,
        ),
    ] = 7.0 * DAY_SECONDS
    max_listed: Annotated[int, about("The most agents in one answer.", ge=1, le=1_000_000)] = 10_000
    max_schemas_bytes: Annotated[
        int,
        about(
            "The most that the schemas of one agent's handlers may take. Larger ones are dropped.",
            ge=0,
            le=16 << 20,
        ),
    ] = 1 << 20


class PushSection(Section, frozen=True, kw_only=True):
    """Delivery to deployments that have a `push_url`."""

    timeout_seconds: Annotated[float, about("How long one send may take.", gt=0, le=300)] = 10.0
    response_seconds: Annotated[
        float,
        about(
            "How long an accepted command may take before it is sent again.", gt=0, le=DAY_SECONDS
        ),
    ] = 330.0
    backoff_base_seconds: Annotated[
        float,
        about(
            "The longest pause before the first retry of a send. It doubles each time.",
            gt=0,
            le=3600,
        ),
    ] = 5.0
    backoff_cap_seconds: Annotated[
        float, about("The longest pause between two sends of a command.", gt=0, le=DAY_SECONDS)
    ] = 60.0
    concurrency: Annotated[int, about("The most sends at a time.", ge=1, le=1000)] = 32
    per_deployment: Annotated[
        int, about("The most sends to one deployment at a time.", ge=1, le=1000)
    ] = 8
    circuit_failures: Annotated[
        int,
        about(
            "After this many failures in a row nothing is sent to a deployment for a while, so that"
            " its commands keep their attempts. An answer of the receiver ends the count.",
            ge=1,
            le=1000,
        ),
    ] = 5
    circuit_base_seconds: Annotated[
        float,
        about(
            "The longest first pause. One command is sent after it; if that fails too, the next"
            " pause is twice as long.",
            gt=0,
            le=3600,
        ),
    ] = 5.0
    circuit_cap_seconds: Annotated[
        float, about("The longest pause of a deployment.", gt=0, le=DAY_SECONDS)
    ] = 300.0
    allow_hosts: Annotated[
        list[str],
        about(
            "Hosts with private addresses that may be pushed to: names, `*.names` and networks such"
            " as 10.2.0.0/16. Public hosts may always be pushed to, link-local and metadata"
            " addresses never."
        ),
    ] = []


class SweeperSection(Section, frozen=True, kw_only=True):
    """The sweep of deadlines, lapsed leases and idempotency keys."""

    interval_seconds: Annotated[
        float, about("How often deadlines and leases are checked.", gt=0, le=60)
    ] = 0.5
    batch: Annotated[
        int, about("The most commands that one step of a sweep changes.", ge=1, le=10_000)
    ] = 500
    outage_seconds: Annotated[
        float,
        about("A gap between two sweeps longer than this counts as an outage.", gt=0, le=3600),
    ] = 5.0


class RetentionSection(Section, frozen=True, kw_only=True):
    """Retention: for how long the server keeps what has ended (docs/operations.md)."""

    succeeded_seconds: Annotated[
        float,
        about("Commands that SUCCEEDED, with their results.", ge=0, le=MAX_KEPT_SECONDS),
    ] = 30.0 * DAY_SECONDS
    failed_seconds: Annotated[
        float, about("Commands that FAILED, with their errors.", ge=0, le=MAX_KEPT_SECONDS)
    ] = 90.0 * DAY_SECONDS
    expired_seconds: Annotated[
        float, about("Commands that EXPIRED.", ge=0, le=MAX_KEPT_SECONDS)
    ] = 90.0 * DAY_SECONDS
    bodies_seconds: Annotated[
        float,
        about(
            "Params and results of commands that have ended, if the command itself is kept longer."
            " A result that is gone reads as the error RESPONSE_REMOVED.",
            ge=0,
            le=MAX_KEPT_SECONDS,
        ),
    ] = 30.0 * DAY_SECONDS
    events_seconds: Annotated[
        float,
        about("Log lines and progress of commands that have ended.", ge=0, le=MAX_KEPT_SECONDS),
    ] = 14.0 * DAY_SECONDS
    upload_seconds: Annotated[
        float,
        about(
            "How long a command may wait for its params. Then it ends as FAILED with"
            " UPLOAD_ABANDONED.",
            ge=3600,
            le=MAX_KEPT_SECONDS,
        ),
    ] = 1.0 * DAY_SECONDS
    agents_seconds: Annotated[
        float,
        about("Agents, after they were last seen.", ge=3600, le=MAX_KEPT_SECONDS),
    ] = 30.0 * DAY_SECONDS
    tokens_seconds: Annotated[
        float,
        about(
            "Tokens and enrolment tokens, after they expired or were revoked, and credentials,"
            " after they were revoked. Not shorter than the life of a signed URL (`urls`).",
            ge=3600,
            le=MAX_KEPT_SECONDS,
        ),
    ] = 90.0 * DAY_SECONDS
    orphan_seconds: Annotated[
        float,
        about(
            "The age from which on a blob is removed that no command names.",
            ge=3600,
            le=MAX_KEPT_SECONDS,
        ),
    ] = 1.0 * DAY_SECONDS
    interval_seconds: Annotated[
        float, about("How often the server looks for what is to be removed.", gt=0, le=DAY_SECONDS)
    ] = 60.0
    collection_seconds: Annotated[
        float,
        about(
            "How often the server looks for blobs that no command names, and for agents and tokens."
            " When room is short, it looks each time.",
            gt=0,
            le=30 * DAY_SECONDS,
        ),
    ] = 3600.0
    batch: Annotated[
        int,
        about(
            "The most commands that one step of a purge removes. A step ends after 2 ms anyway.",
            ge=1,
            le=10_000,
        ),
    ] = 200


class DiskSection(Section, frozen=True, kw_only=True):
    """Room on the disk of the data directory: docs/operations.md. On a small disk the marks are a
    tenth, a twentieth and a fiftieth of it, and the ballast an eighth, if that is less."""

    soft_free_bytes: Annotated[
        int, about("With less room than this, no new blobs of params are taken.", ge=0, le=1 << 50)
    ] = 1 << 30
    hard_free_bytes: Annotated[
        int,
        about(
            "With less room than this, no new commands are taken: they get 507. What is there goes"
            " on.",
            ge=0,
            le=1 << 50,
        ),
    ] = 256 << 20
    critical_free_bytes: Annotated[
        int,
        about(
            "With less room than this, the server only reads, deletes, renews and releases.",
            ge=0,
            le=1 << 50,
        ),
    ] = 64 << 20
    ballast_bytes: Annotated[
        int,
        about(
            "The size of a file that takes room until it is needed to delete and to start; 0 for no"
            " such file.",
            ge=0,
            le=1 << 40,
        ),
    ] = 64 << 20
    check_seconds: Annotated[float, about("How often the room is measured.", gt=0, le=60)] = 1.0


class RestoreSection(Section, frozen=True, kw_only=True):
    """The first start after `arc-server restore`."""

    freeze_seconds: Annotated[
        float,
        about(
            "How long agents may come back with work that they began before the restore. Until then"
            " leases of before stay good, and commands of the backup are not leased. Make it longer"
            " than the leases and the longest back-off of the agents.",
            ge=0,
            le=DAY_SECONDS,
        ),
    ] = 120.0
    unknown_key_seconds: Annotated[
        float,
        about(
            "How long an unknown idempotency key that is no UUIDv7 gets 409"
            " IDEMPOTENCY_KEY_UNKNOWN: it may have been used in the lost time. A UUIDv7 says when"
            " it was made, and is refused if that was before the start.",
            ge=0,
            le=MAX_URL_SECONDS,
        ),
    ] = float(DAY_SECONDS)


class TargetEntry(Section, frozen=True, kw_only=True):
    """One target of a deployment."""

    resource_id: Annotated[Name, about("The id of the target, without a colon.")]
    resource_type: Annotated[ResourceType, about("The kind of the target.")] = ResourceType.DAEMON


class DeploymentEntry(Section, frozen=True, kw_only=True):
    """A deployment that is registered at the start."""

    id: Annotated[Name, about("The id of the deployment.")]
    targets: Annotated[list[TargetEntry], about("Its targets. More may register themselves.")] = []
    default_target: Annotated[
        Name | None,
        about("The target of commands that name none. Needed only if there are several."),
    ] = None
    push_url: Annotated[
        str | None, about("A URL that commands are POSTed to, in place of being leased.")
    ] = None
    push_token: Annotated[str | None, about("The bearer token for `push_url`.")] = None
    push_token_file: Annotated[
        Path | None, about("A file with the bearer token. Safer than the token itself.")
    ] = None


class ServerConfig(Section, frozen=True, kw_only=True):
    """The configuration of the server."""

    listen: Annotated[
        str,
        about(
            "The HOST:PORT to serve on, or unix:PATH. Port 0 picks a free one. Sockets that systemd"
            " hands over (`arc-server.socket`) go before."
        ),
    ] = "127.0.0.1:8484"
    data_dir: Annotated[
        Path, about("The directory of database, blobs and signing keys. One server uses it.")
    ] = Path("arc-data")
    public_url: Annotated[
        str | None,
        about(
            "The URL that clients reach the server by; URLs in answers begin with it. By default"
            " scheme and host of each request."
        ),
    ] = None
    log: LogSection = LogSection()
    metrics: ServerMetricsSection = ServerMetricsSection()
    tls: ServerTlsSection = ServerTlsSection()
    http: HttpLimits = HttpLimits()
    auth: AuthSection = AuthSection()
    oidc: OidcSection = OidcSection()
    enrolment: EnrolmentSection = EnrolmentSection()
    leases: LeasesSection = LeasesSection()
    commands: CommandSection = CommandSection()
    urls: UrlSection = UrlSection()
    targets: TargetsSection = TargetsSection()
    quotas: QuotaSection = QuotaSection()
    agents: AgentSection = AgentSection()
    push: PushSection = PushSection()
    sweeper: SweeperSection = SweeperSection()
    retention: RetentionSection = RetentionSection()
    disk: DiskSection = DiskSection()
    restore: RestoreSection = RestoreSection()
    deployments: Annotated[
        list[DeploymentEntry], about("Deployments that are registered at the start.")
    ] = []
