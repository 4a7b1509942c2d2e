-- Agents that enrolled: how they may, who did, and the keys that they show it by.

CREATE TABLE enrol_tokens (
    token_hash    BLOB    PRIMARY KEY,   -- SHA-256 of its text
    token_id      TEXT    NOT NULL UNIQUE,
    deployment_id TEXT    NOT NULL,
    uses          INTEGER NOT NULL,
    used          INTEGER NOT NULL DEFAULT 0,
    created_at    INTEGER NOT NULL,
    expires_at    INTEGER NOT NULL,
    revoked_at    INTEGER,
    CHECK (used BETWEEN 0 AND uses)
) STRICT, WITHOUT ROWID;

CREATE INDEX enrol_tokens_created ON enrol_tokens (created_at, token_id);

CREATE TABLE credentials (
    credential_id  TEXT    PRIMARY KEY,
    deployment_id  TEXT    NOT NULL,
    hostname       TEXT    NOT NULL,
    enrol_token_id TEXT    NOT NULL,
    enrolled_at    INTEGER NOT NULL,
    revoked_at     INTEGER
) STRICT, WITHOUT ROWID;

CREATE INDEX credentials_enrolled ON credentials (enrolled_at, credential_id);

-- Newer keys have a higher seq. A key ends some time after a newer one was first used.
CREATE TABLE agent_keys (
    seq           INTEGER PRIMARY KEY,
    key_id        TEXT    NOT NULL UNIQUE,
    credential_id TEXT    NOT NULL REFERENCES credentials (credential_id) ON DELETE CASCADE,
    public_key    BLOB    NOT NULL,
    made_at       INTEGER NOT NULL,
    used_at       INTEGER,
    ends_at       INTEGER
) STRICT;

CREATE INDEX agent_keys_of_credential ON agent_keys (credential_id, seq);

-- How often anything was revoked: a server that sees another number looks at who is there.
CREATE TABLE revocations (
    id     INTEGER PRIMARY KEY CHECK (id = 1),
    number INTEGER NOT NULL
) STRICT;

INSERT INTO revocations (id, number) VALUES (1, 0);
