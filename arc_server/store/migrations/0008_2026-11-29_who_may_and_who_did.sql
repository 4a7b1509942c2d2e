-- Who may do what, and who did it.

-- Who made a command, who holds its lease, and who ended it: the ids of tokens or credentials. NULL
-- for what no token was needed for, and for what an earlier release wrote.
ALTER TABLE commands ADD COLUMN created_by TEXT;
ALTER TABLE commands ADD COLUMN lease_credential TEXT;
ALTER TABLE commands ADD COLUMN completed_by TEXT;

-- A token has several secrets while it is rotated. Patterns are JSON arrays; NULL: all.
CREATE TABLE tokens_with_bounds (
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

CREATE TABLE token_secrets (
    token_hash BLOB    PRIMARY KEY,   -- SHA-256 of its text
    token_id   TEXT    NOT NULL REFERENCES tokens_with_bounds (token_id) ON DELETE CASCADE,
    created_at INTEGER NOT NULL,
    ends_at    INTEGER
) STRICT, WITHOUT ROWID;

INSERT INTO tokens_with_bounds
    (token_id, scope, name, created_at, created_by, deployments, revoked_at)
SELECT token_id, scope, '', created_at, '',
    CASE WHEN deployment_id IS NOT NULL THEN json_array(deployment_id) END, revoked_at
FROM tokens;

INSERT INTO token_secrets (token_hash, token_id, created_at)
SELECT token_hash, token_id, created_at FROM tokens;

DROP TABLE tokens;

ALTER TABLE tokens_with_bounds RENAME TO tokens;

CREATE INDEX tokens_created ON tokens (created_at, token_id);
CREATE INDEX tokens_revoked ON tokens (revoked_at, token_id) WHERE revoked_at IS NOT NULL;
CREATE INDEX token_secrets_of_token ON token_secrets (token_id);

-- What an enrolment binds a credential to. An agent that enrolled before is bound to no target.
ALTER TABLE enrol_tokens ADD COLUMN target_id TEXT;
ALTER TABLE enrol_tokens ADD COLUMN target_type TEXT;
ALTER TABLE credentials ADD COLUMN is_target_bound INTEGER NOT NULL DEFAULT 0;
ALTER TABLE credentials ADD COLUMN target_id TEXT;
ALTER TABLE credentials ADD COLUMN target_type TEXT;

CREATE INDEX credentials_revoked ON credentials (revoked_at, credential_id)
    WHERE revoked_at IS NOT NULL;

-- An agent's record is its credential's: another credential that gives the same id gets a record of
-- its own. Empty: no token was needed, or an earlier release wrote it.
CREATE TABLE agents_by_credential (
    deployment_id TEXT    NOT NULL,
    agent_id      TEXT    NOT NULL,
    credential    TEXT    NOT NULL,
    registration  BLOB    NOT NULL,   -- as it came over the wire, without the schemas
    first_seen_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL,
    schemas       BLOB,
    PRIMARY KEY (deployment_id, agent_id, credential)
) STRICT, WITHOUT ROWID;

INSERT INTO agents_by_credential (
    deployment_id, agent_id, credential, registration, first_seen_at, last_seen_at, schemas
) SELECT deployment_id, agent_id, '', registration, first_seen_at, last_seen_at, schemas
FROM agents;

DROP TABLE agents;

ALTER TABLE agents_by_credential RENAME TO agents;

CREATE INDEX agents_seen ON agents (last_seen_at);
CREATE INDEX agents_of_deployment_seen ON agents (deployment_id, last_seen_at);
