BEGIN TRANSACTION;
CREATE TABLE agent_keys (
    seq           INTEGER PRIMARY KEY,
    key_id        TEXT    NOT NULL UNIQUE,
    credential_id TEXT    NOT NULL REFERENCES credentials (credential_id) ON DELETE CASCADE,
    public_key    BLOB    NOT NULL,
    made_at       INTEGER NOT NULL,
    used_at       INTEGER,
    ends_at       INTEGER
) STRICT;
CREATE TABLE "agents" (
    deployment_id TEXT    NOT NULL,
    agent_id      TEXT    NOT NULL,
    credential    TEXT    NOT NULL,
    registration  BLOB    NOT NULL,   -- as it came over the wire, without the schemas
    first_seen_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL,
    schemas       BLOB,
    PRIMARY KEY (deployment_id, agent_id, credential)
) STRICT, WITHOUT ROWID;
INSERT INTO "agents" VALUES('dep-1','agent-1','',X'7B226465706C6F796D656E744964223A226465702D31222C2276657273696F6E223A2231222C22686F73746E616D65223A2268222C2268616E646C657273223A5B5D7D',1,2,NULL);
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
, created_by TEXT, lease_credential TEXT, completed_by TEXT, retry_of TEXT) STRICT;
INSERT INTO "commands" VALUES(1,'cmd_ready','dep-1','default','daemon','report','PENDING',1,5,1,0,NULL,NULL,NULL,0,NULL,NULL,NULL,NULL,1,NULL,NULL,NULL,NULL,NULL);
INSERT INTO "commands" VALUES(2,'cmd_done','dep-1','default','daemon','report','SUCCEEDED',1,5,1,0,2,3,NULL,0,'lease_2',1,NULL,NULL,2,NULL,NULL,NULL,NULL,NULL);
CREATE TABLE credentials (
    credential_id  TEXT    PRIMARY KEY,
    deployment_id  TEXT    NOT NULL,
    hostname       TEXT    NOT NULL,
    enrol_token_id TEXT    NOT NULL,
    enrolled_at    INTEGER NOT NULL,
    revoked_at     INTEGER
, is_target_bound INTEGER NOT NULL DEFAULT 0, target_id TEXT, target_type TEXT) STRICT, WITHOUT ROWID;
INSERT INTO "credentials" VALUES('cred_1','dep-1','host','etok_1',1,NULL,0,NULL,NULL);
CREATE TABLE deployments (
    deployment_id     TEXT    PRIMARY KEY,
    default_target_id TEXT,
    heir_target_id    TEXT,   -- the first target; took over from the implicit one
    push_url          TEXT,
    push_token        TEXT,
    created_at        INTEGER NOT NULL
, push_by TEXT) STRICT, WITHOUT ROWID;
INSERT INTO "deployments" VALUES('dep-1',NULL,NULL,NULL,NULL,1,NULL);
CREATE TABLE enrol_tokens (
    token_hash    BLOB    PRIMARY KEY,   -- SHA-256 of its text
    token_id      TEXT    NOT NULL UNIQUE,
    deployment_id TEXT    NOT NULL,
    uses          INTEGER NOT NULL,
    used          INTEGER NOT NULL DEFAULT 0,
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    revoked_at    INTEGER, target_id TEXT, target_type TEXT,
    CHECK (used BETWEEN 0 AND uses)
) STRICT, WITHOUT ROWID;
INSERT INTO "enrol_tokens" VALUES(X'656E726F6C','etok_1','dep-1',2,1,1,2,NULL,NULL,NULL);
CREATE TABLE epochs (
    number             INTEGER PRIMARY KEY,
    epoch              TEXT    NOT NULL UNIQUE,
    numbers_from       INTEGER NOT NULL,  -- numbers of commands from here on were given out in it
    backed_up_at       INTEGER,           -- when the backup was taken that it goes on from
    began_at           INTEGER,           -- when the first server started in it
    frozen_until       INTEGER,           -- leases of former epochs stay good
    keys_unknown_until INTEGER            -- idempotency keys of unknown age are refused
) STRICT;
INSERT INTO "epochs" VALUES(1,'2828f541',0,NULL,NULL,NULL,NULL);
CREATE TABLE event_lines (
    command INTEGER NOT NULL REFERENCES event_streams (command) ON DELETE CASCADE,
    place   INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    level   TEXT    NOT NULL,
    message TEXT    NOT NULL,
    PRIMARY KEY (command, place)
) STRICT, WITHOUT ROWID;
CREATE TABLE event_streams (
    command     INTEGER PRIMARY KEY REFERENCES commands (seq) ON DELETE CASCADE,
    lease_id    TEXT    NOT NULL,
    last_number INTEGER NOT NULL,
    last_place  INTEGER NOT NULL,
    dropped     INTEGER NOT NULL,   -- lines that holders of earlier leases had no room for
    unsent      INTEGER NOT NULL,   -- the same, of this lease
    progress    BLOB                -- JSON
) STRICT;
CREATE TABLE "idempotency_keys" (
    deployment_id TEXT    NOT NULL,
    command       TEXT    NOT NULL,
    key           TEXT    NOT NULL,
    scope         TEXT    NOT NULL,
    names_target  INTEGER NOT NULL,
    params_digest BLOB    NOT NULL,
    command_seq   INTEGER REFERENCES commands (seq) ON DELETE SET NULL,
    created_at    INTEGER NOT NULL,
    PRIMARY KEY (deployment_id, command, key, scope)
) STRICT, WITHOUT ROWID;
INSERT INTO "idempotency_keys" VALUES('dep-1','report','k','',0,X'6F6E65',1,1);
CREATE TABLE numbering (
    id   INTEGER PRIMARY KEY CHECK (id = 1),
    high INTEGER NOT NULL
) STRICT;
INSERT INTO "numbering" VALUES(1,1000);
CREATE TABLE params (
    command  INTEGER PRIMARY KEY REFERENCES commands (seq) ON DELETE CASCADE,
    form     INTEGER NOT NULL,
    data     BLOB    NOT NULL,
    size     INTEGER,
    checksum INTEGER NOT NULL
, signature BLOB) STRICT;
INSERT INTO "params" VALUES(1,1,X'7B7D',2,950408795,NULL);
INSERT INTO "params" VALUES(2,1,X'7B7D',2,950408795,NULL);
CREATE TABLE push_circuits (
    deployment_id TEXT    PRIMARY KEY REFERENCES deployments (deployment_id) ON DELETE CASCADE,
    opened_at     INTEGER NOT NULL,
    retry_at      INTEGER NOT NULL,
    times         INTEGER NOT NULL,
    reason        TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE responses (
    command  INTEGER PRIMARY KEY REFERENCES commands (seq) ON DELETE CASCADE,
    form     INTEGER NOT NULL,
    data     BLOB    NOT NULL,
    size     INTEGER,
    checksum INTEGER NOT NULL
) STRICT;
INSERT INTO "responses" VALUES(2,1,X'7B7D',2,950408795);
CREATE TABLE revocations (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    number INTEGER NOT NULL
) STRICT;
INSERT INTO "revocations" VALUES(1,0);
CREATE TABLE signs_of_life (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    seen_at INTEGER NOT NULL
) STRICT;
CREATE TABLE targets (
    deployment_id TEXT    NOT NULL REFERENCES deployments (deployment_id) ON DELETE CASCADE,
    position      INTEGER NOT NULL,
    resource_id   TEXT    NOT NULL,
    resource_type TEXT    NOT NULL,
    created_at    INTEGER NOT NULL,
    PRIMARY KEY (deployment_id, position),
    UNIQUE (deployment_id, resource_id)
) STRICT, WITHOUT ROWID;
CREATE TABLE token_secrets (
    token_hash BLOB    PRIMARY KEY,   -- SHA-256 of its text
    token_id   TEXT    NOT NULL REFERENCES "tokens" (token_id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    ends_at    INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO "token_secrets" VALUES(X'68617368','tok_1',1,NULL);
CREATE TABLE "tokens" (
    token_id     TEXT    PRIMARY KEY,
    scope        TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    created_at   INTEGER NOT NULL,
    created_by   TEXT    NOT NULL,
    deployments  TEXT,
    commands     TEXT,
    target_id    TEXT,
    target_type  TEXT,
    agent_id     TEXT,
    expires_at   INTEGER,
    revoked_at   INTEGER,
    last_used_at INTEGER
) STRICT, WITHOUT ROWID;
INSERT INTO "tokens" VALUES('tok_1','admin','',1,'',NULL,NULL,NULL,NULL,NULL,NULL,2,NULL);
CREATE TABLE usage (
    deployment_id    TEXT    PRIMARY KEY,
    live_commands    INTEGER NOT NULL DEFAULT 0,
    open_uploads     INTEGER NOT NULL DEFAULT 0,   -- commands in PENDING_UPLOAD
    stored_bytes     INTEGER NOT NULL DEFAULT 0,   -- bodies, announced ones too, and registrations
    idempotency_keys INTEGER NOT NULL DEFAULT 0,
    agents           INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;
INSERT INTO "usage" VALUES('dep-1',1,0,73,1,1);
CREATE INDEX commands_ready ON commands (deployment_id, target_id, ready_order)
    WHERE state = 'PENDING' AND is_push = 0;
CREATE UNIQUE INDEX commands_lease ON commands (lease_id)
    WHERE state = 'DISPATCHED';
CREATE INDEX commands_lapse ON commands (lease_expires_at)
    WHERE state = 'DISPATCHED';
CREATE INDEX commands_holder ON commands (lease_holder)
    WHERE state = 'DISPATCHED' AND lease_holder IS NOT NULL;
CREATE INDEX commands_of_deployment ON commands (deployment_id);
CREATE INDEX commands_by_name ON commands (command);
CREATE INDEX commands_of_deployment_by_name ON commands (deployment_id, command);
CREATE INDEX commands_in_state ON commands (state)
    WHERE state <> 'SUCCEEDED';
CREATE INDEX commands_of_deployment_ended_badly ON commands (deployment_id, state)
    WHERE state IN ('FAILED', 'EXPIRED');
CREATE INDEX enrol_tokens_created ON enrol_tokens (created_at, token_id);
CREATE INDEX credentials_enrolled ON credentials (enrolled_at, credential_id);
CREATE INDEX agent_keys_of_credential ON agent_keys (credential_id, seq);
CREATE INDEX commands_deadline ON commands (deadline)
    WHERE deadline IS NOT NULL AND completed_at IS NULL;
CREATE INDEX idempotency_keys_of_command ON idempotency_keys (command_seq)
    WHERE command_seq IS NOT NULL;
CREATE INDEX idempotency_keys_orphaned ON idempotency_keys (created_at)
    WHERE command_seq IS NULL;
CREATE INDEX tokens_created ON tokens (created_at, token_id);
CREATE INDEX tokens_revoked ON tokens (revoked_at, token_id) WHERE revoked_at IS NOT NULL;
CREATE INDEX token_secrets_of_token ON token_secrets (token_id);
CREATE INDEX credentials_revoked ON credentials (revoked_at, credential_id)
    WHERE revoked_at IS NOT NULL;
CREATE INDEX agents_seen ON agents (last_seen_at);
CREATE INDEX agents_of_deployment_seen ON agents (deployment_id, last_seen_at);
CREATE TRIGGER usage_of_deleted_command BEFORE DELETE ON commands BEGIN
    UPDATE usage SET
        live_commands = live_commands - (old.completed_at IS NULL),
        open_uploads = open_uploads - (old.state = 'PENDING_UPLOAD'),
        stored_bytes = stored_bytes
            - coalesce((SELECT iif(form = 3 AND old.state <> 'PENDING_UPLOAD', 0, size)
                FROM params WHERE command = old.seq), 0)
            - coalesce((SELECT size FROM responses WHERE command = old.seq), 0)
    WHERE deployment_id = old.deployment_id;
END;
CREATE TRIGGER usage_of_replaced_params AFTER UPDATE OF size ON params BEGIN
    UPDATE usage SET stored_bytes = stored_bytes - coalesce(old.size, 0)
    WHERE deployment_id = (SELECT deployment_id FROM commands WHERE seq = old.command);
END;
CREATE TRIGGER usage_of_replaced_response AFTER UPDATE OF size ON responses BEGIN
    UPDATE usage SET stored_bytes = stored_bytes - coalesce(old.size, 0)
    WHERE deployment_id = (SELECT deployment_id FROM commands WHERE seq = old.command);
END;
CREATE TRIGGER usage_of_deleted_key AFTER DELETE ON idempotency_keys BEGIN
    UPDATE usage SET idempotency_keys = idempotency_keys - 1
    WHERE deployment_id = old.deployment_id;
END;
CREATE TRIGGER usage_of_agent AFTER INSERT ON agents BEGIN
    INSERT INTO usage (deployment_id, agents, stored_bytes)
    VALUES (new.deployment_id, 1, length(new.registration) + coalesce(length(new.schemas), 0))
    ON CONFLICT (deployment_id) DO UPDATE
    SET agents = agents + 1, stored_bytes = stored_bytes + excluded.stored_bytes;
END;
CREATE TRIGGER usage_of_changed_agent AFTER UPDATE OF registration, schemas ON agents BEGIN
    UPDATE usage SET stored_bytes = stored_bytes
        + length(new.registration) + coalesce(length(new.schemas), 0)
        - length(old.registration) - coalesce(length(old.schemas), 0)
    WHERE deployment_id = old.deployment_id;
END;
CREATE TRIGGER usage_of_deleted_agent AFTER DELETE ON agents BEGIN
    UPDATE usage SET agents = agents - 1, stored_bytes = stored_bytes
        - length(old.registration) - coalesce(length(old.schemas), 0)
    WHERE deployment_id = old.deployment_id;
END;
CREATE INDEX deployments_pushed ON deployments (deployment_id) WHERE push_url IS NOT NULL;
CREATE INDEX commands_push_due ON commands (deployment_id, push_at, ready_order)
    WHERE state = 'PENDING' AND is_push = 1;
CREATE INDEX commands_ended ON commands (state, completed_at)
    WHERE completed_at IS NOT NULL;
CREATE INDEX commands_awaited ON commands (created_at)
    WHERE state = 'PENDING_UPLOAD';
CREATE INDEX tokens_expiring ON tokens (expires_at, token_id)
    WHERE expires_at IS NOT NULL;
CREATE INDEX enrol_tokens_expiring ON enrol_tokens (expires_at);
CREATE INDEX enrol_tokens_revoked ON enrol_tokens (revoked_at)
    WHERE revoked_at IS NOT NULL;
COMMIT;
