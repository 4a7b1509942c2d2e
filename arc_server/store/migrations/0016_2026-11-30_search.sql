-- Finding commands: each index stands in the order of a list, newest first, or latest ended first.

-- The code that a FAILED command ended with: a list shows it, and CANCELLED is a state to people.
ALTER TABLE commands ADD COLUMN error_code TEXT;

-- An error is (code, message, details) in MessagePack. A code of up to 31 bytes stands behind one
-- byte of length, a longer one behind two.
UPDATE commands SET error_code = (
    SELECT CASE
        WHEN length BETWEEN 160 AND 191 THEN CAST(substr(data, 3, length - 160) AS TEXT)
        WHEN length = 217 THEN CAST(substr(data, 4, longer) AS TEXT)
    END
    FROM (
        SELECT r.data,
            16 * instr('123456789ABCDEF', substr(hex(r.data), 3, 1))
                + instr('123456789ABCDEF', substr(hex(r.data), 4, 1)) AS length,
            16 * instr('123456789ABCDEF', substr(hex(r.data), 5, 1))
                + instr('123456789ABCDEF', substr(hex(r.data), 6, 1)) AS longer
        FROM responses AS r WHERE r.command = commands.seq AND r.form = 4
    )
) WHERE state = 'FAILED';

DROP INDEX commands_of_deployment;
DROP INDEX commands_by_name;
DROP INDEX commands_of_deployment_by_name;
DROP INDEX commands_in_state;
DROP INDEX commands_of_deployment_ended_badly;

CREATE INDEX commands_created ON commands (created_at);
CREATE INDEX commands_of_deployment ON commands (deployment_id, created_at);
CREATE INDEX commands_by_name ON commands (command, created_at);
CREATE INDEX commands_of_deployment_by_name ON commands (deployment_id, command, created_at);

-- What succeeded, as most commands do, is found among all; so that no index over all commands
-- follows their states.
CREATE INDEX commands_in_state ON commands (state, (error_code IS 'CANCELLED'), created_at)
    WHERE state <> 'SUCCEEDED';
CREATE INDEX commands_of_deployment_ended_badly
    ON commands (deployment_id, state, (error_code IS 'CANCELLED'), created_at)
    WHERE state IN ('FAILED', 'EXPIRED');

-- The implicit target is that of most commands, so its commands are found among all.
CREATE INDEX commands_of_target ON commands (target_id, created_at)
    WHERE target_id <> 'default';

CREATE INDEX commands_by_sender ON commands (created_by, created_at)
    WHERE created_by IS NOT NULL;

-- A key was made when its command was.
CREATE INDEX idempotency_keys_by_key ON idempotency_keys (key, created_at, command_seq)
    WHERE command_seq IS NOT NULL;

-- A command that is not to run yet is PENDING, and has no ready_order until its instant has come.
ALTER TABLE commands ADD COLUMN not_before INTEGER;

CREATE INDEX commands_delayed ON commands (not_before)
    WHERE not_before IS NOT NULL AND state = 'PENDING' AND ready_order IS NULL;

-- What senders tagged commands with: in the row as JSON, its keys in order, to be read and counted;
-- and apart, to be found by.
ALTER TABLE commands ADD COLUMN tags TEXT;

CREATE TABLE command_tags (
    key        TEXT    NOT NULL,
    value      TEXT    NOT NULL,
    created_at INTEGER NOT NULL,
    command    INTEGER NOT NULL,
    PRIMARY KEY (key, value, created_at, command)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER tags_of_deleted_command AFTER DELETE ON commands WHEN old.tags IS NOT NULL BEGIN
    DELETE FROM command_tags WHERE (key, value, created_at, command) IN (
        SELECT t.key, t.value, old.created_at, old.seq FROM json_each(old.tags) AS t
    );
END;

-- How many commands of a deployment are in each state, beside what is counted already: what is
-- PENDING is the rest of the live ones.
ALTER TABLE usage ADD COLUMN dispatched INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN succeeded INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN failed INTEGER NOT NULL DEFAULT 0;      -- but not cancelled
ALTER TABLE usage ADD COLUMN cancelled INTEGER NOT NULL DEFAULT 0;
ALTER TABLE usage ADD COLUMN expired INTEGER NOT NULL DEFAULT 0;

UPDATE usage SET dispatched = counted.dispatched, succeeded = counted.succeeded,
    failed = counted.failed, cancelled = counted.cancelled, expired = counted.expired
FROM (
    SELECT deployment_id, sum(state = 'DISPATCHED') AS dispatched,
        sum(state = 'SUCCEEDED') AS succeeded,
        sum(state = 'FAILED' AND error_code IS NOT 'CANCELLED') AS failed,
        sum(state = 'FAILED' AND error_code IS 'CANCELLED') AS cancelled,
        sum(state = 'EXPIRED') AS expired
    FROM commands GROUP BY deployment_id
) AS counted WHERE usage.deployment_id = counted.deployment_id;

DROP TRIGGER usage_of_deleted_command;

CREATE TRIGGER usage_of_deleted_command BEFORE DELETE ON commands BEGIN
    UPDATE usage SET
        live_commands = live_commands - (old.completed_at IS NULL),
        open_uploads = open_uploads - (old.state = 'PENDING_UPLOAD'),
        dispatched = dispatched - (old.state = 'DISPATCHED'),
        succeeded = succeeded - (old.state = 'SUCCEEDED'),
        failed = failed - (old.state = 'FAILED' AND old.error_code IS NOT 'CANCELLED'),
        cancelled = cancelled - (old.state = 'FAILED' AND old.error_code IS 'CANCELLED'),
        expired = expired - (old.state = 'EXPIRED'),
        stored_bytes = stored_bytes
            - coalesce((SELECT CASE
                    WHEN form <> 3 THEN size
                    WHEN old.state <> 'PENDING_UPLOAD' THEN arrived
                    ELSE max(coalesce(size, 0), arrived) END
                FROM params WHERE command = old.seq), 0)
            - coalesce((SELECT size FROM responses WHERE command = old.seq), 0)
            - coalesce((SELECT bytes FROM event_streams WHERE command = old.seq), 0)
            - coalesce(length(CAST(old.tags AS BLOB)), 0)
    WHERE deployment_id = old.deployment_id;
END;

-- The leases of a command after which it was to be leased again. The latest lease, which most
-- commands have alone, stands in the row of the command.
CREATE TABLE past_leases (
    command    INTEGER NOT NULL REFERENCES commands (seq) ON DELETE CASCADE,
    place      INTEGER NOT NULL,
    lease_id   TEXT    NOT NULL,
    attempt    INTEGER NOT NULL,
    holder     TEXT,
    credential TEXT,
    leased_at  INTEGER NOT NULL,
    ended_at   INTEGER NOT NULL,
    how        TEXT    NOT NULL,
    PRIMARY KEY (command, place)
) STRICT, WITHOUT ROWID;
