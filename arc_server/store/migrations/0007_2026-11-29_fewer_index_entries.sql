-- A command that has ended has a completed_at, so the index need not follow the states in between.
DROP INDEX commands_deadline;
CREATE INDEX commands_deadline ON commands (deadline)
    WHERE deadline IS NOT NULL AND completed_at IS NULL;

-- Keys are found by all of their columns: as the primary key of the table they stand there once.
CREATE TABLE keys_without_rowid (
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

INSERT INTO keys_without_rowid
SELECT deployment_id, command, key, scope, names_target, params_digest, command_seq, created_at
FROM idempotency_keys;

DROP TABLE idempotency_keys;

ALTER TABLE keys_without_rowid RENAME TO idempotency_keys;

CREATE INDEX idempotency_keys_of_command ON idempotency_keys (command_seq)
    WHERE command_seq IS NOT NULL;
CREATE INDEX idempotency_keys_orphaned ON idempotency_keys (created_at)
    WHERE command_seq IS NULL;
