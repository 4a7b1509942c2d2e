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
