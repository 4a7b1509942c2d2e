-- An agent is known by its deployment and its id together: no other deployment's token may take its
-- record over, or make it look alive.

CREATE TABLE agents_by_deployment (
    deployment_id TEXT    NOT NULL,
    agent_id      TEXT    NOT NULL,
    registration  BLOB    NOT NULL,   -- as it came over the wire, without the schemas
    first_seen_at INTEGER NOT NULL,
    last_seen_at  INTEGER NOT NULL,
    schemas       BLOB,
    PRIMARY KEY (deployment_id, agent_id)
) STRICT, WITHOUT ROWID;

INSERT INTO agents_by_deployment (
    deployment_id, agent_id, registration, first_seen_at, last_seen_at, schemas
) SELECT deployment_id, agent_id, registration, first_seen_at, last_seen_at, schemas FROM agents;

DROP TABLE agents;

ALTER TABLE agents_by_deployment RENAME TO agents;

CREATE INDEX agents_seen ON agents (last_seen_at);
CREATE INDEX agents_of_deployment_seen ON agents (deployment_id, last_seen_at);
