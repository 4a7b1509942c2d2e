-- Commands, their bodies, and who they are for.
--
-- Instants are microseconds since 1970 in UTC. States are spelled as on the wire.
-- Rows are found by `seq`; numbers come from `numbering`, in blocks, and are never used twice.

CREATE TABLE numbering (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    high INTEGER NOT NULL
) STRICT;

INSERT INTO numbering (id, high) VALUES (1, 0);

CREATE TABLE commands (
    seq              INTEGER PRIMARY KEY,
    command_id       TEXT    NOT NULL UNIQUE,
    deployment_id    TEXT    NOT NULL,
    target_id        TEXT    NOT NULL,
    target_type      TEXT    NOT NULL,
    command          TEXT    NOT NULL,
    state            TEXT    NOT NULL,
    attempt          INTEGER NOT NULL,
    max_attempts     INTEGER NOT NULL,
    created_at       INTEGER NOT NULL,
    is_push          INTEGER NOT NULL,
    dispatched_at    INTEGER,
    completed_at     INTEGER,
    deadline         INTEGER,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    lease_id         TEXT,
    lease_attempt    INTEGER,
    lease_expires_at INTEGER,
    lease_holder     TEXT,
    ready_order      INTEGER,
    push_at          INTEGER
) STRICT;

-- What an agent may lease, in order. A redelivered command keeps its ready_order.
CREATE INDEX commands_ready ON commands (deployment_id, target_id, ready_order)
    WHERE state = 'PENDING' AND is_push = 0;

-- What the dispatcher owes, by when it is due.
CREATE INDEX commands_push_due ON commands (push_at, ready_order)
    WHERE state = 'PENDING' AND is_push = 1;

CREATE UNIQUE INDEX commands_lease ON commands (lease_id)
    WHERE state = 'DISPATCHED';

CREATE INDEX commands_lapse ON commands (lease_expires_at)
    WHERE state = 'DISPATCHED';

CREATE INDEX commands_holder ON commands (lease_holder)
    WHERE state = 'DISPATCHED' AND lease_holder IS NOT NULL;

CREATE INDEX commands_deadline ON commands (deadline)
    WHERE deadline IS NOT NULL AND state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED');

-- Lists, newest first: SQLite ends every index with the seq. What succeeded, as most commands do, is
-- found among all of its deployment; so that no index over all commands follows their states.
CREATE INDEX commands_of_deployment ON commands (deployment_id);
CREATE INDEX commands_by_name ON commands (command);
CREATE INDEX commands_of_deployment_by_name ON commands (deployment_id, command);
CREATE INDEX commands_in_state ON commands (state)
    WHERE state <> 'SUCCEEDED';
CREATE INDEX commands_of_deployment_ended_badly ON commands (deployment_id, state)
    WHERE state IN ('FAILED', 'EXPIRED');

-- Bodies stand apart, so that the hot rows stay small. `form` tells what `data` is
-- (operations/bodies.py); `checksum` is a CRC-32 over all of the row.
CREATE TABLE params (
    command  INTEGER PRIMARY KEY REFERENCES commands (seq) ON DELETE CASCADE,
    form     INTEGER NOT NULL,
    data     BLOB    NOT NULL,
    size     INTEGER,
    checksum INTEGER NOT NULL
) STRICT;

CREATE TABLE responses (
    command  INTEGER PRIMARY KEY REFERENCES commands (seq) ON DELETE CASCADE,
    form     INTEGER NOT NULL,
    data     BLOB    NOT NULL,
    size     INTEGER,
    checksum INTEGER NOT NULL
) STRICT;

-- `scope` is the target, or empty for the implicit one and for the target that took over from it:
-- so the keys need not be moved. A key outlives its command until it is swept.
CREATE TABLE idempotency_keys (
    id              INTEGER PRIMARY KEY,
    deployment_id   TEXT    NOT NULL,
    command         TEXT    NOT NULL,
    key             TEXT    NOT NULL,
    scope           TEXT    NOT NULL,
    names_target    INTEGER NOT NULL,
    params_digest   BLOB    NOT NULL,
    command_seq     INTEGER REFERENCES commands (seq) ON DELETE SET NULL,
    created_at      INTEGER NOT NULL,
    UNIQUE (deployment_id, command, key, scope)
) STRICT;

CREATE INDEX idempotency_keys_of_command ON idempotency_keys (command_seq)
    WHERE command_seq IS NOT NULL;

CREATE INDEX idempotency_keys_orphaned ON idempotency_keys (created_at)
    WHERE command_seq IS NULL;

CREATE TABLE deployments (
    deployment_id     TEXT    PRIMARY KEY,
    default_target_id TEXT,
    heir_target_id    TEXT,   -- the first target; took over from the implicit one
    push_url          TEXT,
    push_token        TEXT,
    created_at        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE targets (
    deployment_id TEXT    NOT NULL REFERENCES deployments (deployment_id) ON DELETE CASCADE,
    position      INTEGER NOT NULL,
    resource_id   TEXT    NOT NULL,
    resource_type TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    PRIMARY KEY (deployment_id, position),
    UNIQUE (deployment_id, resource_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE agents (
    agent_id      TEXT    PRIMARY KEY,
    deployment_id TEXT    NOT NULL,
    registration  BLOB    NOT NULL,   -- as it came over the wire
    first_seen_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX agents_seen ON agents (last_seen_at);
CREATE INDEX agents_of_deployment_seen ON agents (deployment_id, last_seen_at);

CREATE TABLE tokens (
    token_hash    BLOB    PRIMARY KEY,   -- SHA-256 of its text
    token_id      TEXT    NOT NULL UNIQUE,
    scope         TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    deployment_id TEXT,
    revoked_at    INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX tokens_created ON tokens (created_at, token_id);

CREATE TABLE signs_of_life (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    seen_at INTEGER NOT NULL
) STRICT;
