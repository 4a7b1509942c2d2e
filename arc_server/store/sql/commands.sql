-- Creating, finding and ending commands. Every change of state names the states that it may come
-- from (arc_protocol/lifecycle.py) and the one that was read; the caller checks the row count.

-- name: command_columns
c.seq, c.command_id, c.deployment_id, c.target_id, c.target_type, c.command, c.state, c.attempt,
c.max_attempts, c.created_at, c.is_push, c.dispatched_at, c.completed_at, c.deadline,
c.cancel_requested, c.lease_id, c.lease_attempt, c.lease_expires_at, c.lease_holder,
c.lease_credential, c.created_by, c.completed_by, c.retry_of

-- name: reserve_numbers
UPDATE numbering SET high = high + :count WHERE id = 1;

-- name: highest_number
SELECT high FROM numbering WHERE id = 1;

-- name: insert_command
INSERT INTO commands (
    seq, command_id, deployment_id, target_id, target_type, command, state, attempt, max_attempts,
    created_at, is_push, deadline, ready_order, push_at, created_by,
    retry_of
) VALUES (
    :seq, :command_id, :deployment_id, :target_id, :target_type, :command, :state, 1, :max_attempts,
    :created_at, :is_push, nullif(:deadline, 0), nullif(:ready_order, 0), nullif(:push_at, 0),
    :created_by, :retry_of
);

-- name: insert_params
INSERT INTO params (command, form, data, size, checksum)
VALUES (:command, :form, :data, :size, :checksum);

-- name: add_signature
UPDATE params SET signature = :signature WHERE command = :command;

-- name: replace_params
INSERT INTO params (command, form, data, size, checksum)
VALUES (:command, :form, :data, :size, :checksum)
ON CONFLICT (command) DO UPDATE
SET form = excluded.form, data = excluded.data, size = excluded.size, checksum = excluded.checksum,
    arrived = 0;

-- name: replace_response
INSERT INTO responses (command, form, data, size, checksum)
VALUES (:command, :form, :data, :size, :checksum)
ON CONFLICT (command) DO UPDATE
SET form = excluded.form, data = excluded.data, size = excluded.size, checksum = excluded.checksum;

-- name: find_keys
SELECT k.scope, k.names_target, k.params_digest, k.command_seq
FROM idempotency_keys AS k
WHERE k.deployment_id = :deployment_id AND k.command = :command AND k.key = :key;

-- name: insert_key
INSERT INTO idempotency_keys (
    deployment_id, command, key, scope, names_target, params_digest, command_seq, created_at
) VALUES (
    :deployment_id, :command, :key, :scope, :names_target, :params_digest, :command_seq, :created_at
);

-- name: find_command
SELECT {command_columns} FROM commands AS c WHERE c.command_id = :command_id;

-- name: command_alone
SELECT {command_columns} FROM commands AS c WHERE c.seq = :seq;

-- name: command_with_params
SELECT {command_columns}, p.form, p.data, p.size, p.checksum, p.signature
FROM commands AS c LEFT JOIN params AS p ON p.command = c.seq
WHERE c.seq = :seq;

-- name: command_with_response
SELECT {command_columns}, r.form, r.data, r.size, r.checksum
FROM commands AS c LEFT JOIN responses AS r ON r.command = c.seq
WHERE c.command_id = :command_id;

-- name: params_of
SELECT p.form, p.data, p.size, p.checksum, p.signature FROM params AS p WHERE p.command = :seq;

-- name: awaited_sizes
SELECT coalesce(p.size, 0), p.arrived FROM params AS p WHERE p.command = :seq AND p.form = 3;

-- name: put_arrived
UPDATE params SET arrived = :arrived WHERE command = :seq AND form = 3;

-- name: response_of
SELECT r.form, r.data, r.size, r.checksum FROM responses AS r WHERE r.command = :seq;

-- name: ready_after_upload
UPDATE commands SET state = 'PENDING', ready_order = :ready_order, push_at = :push_at
WHERE seq = :seq AND state IN ('PENDING_UPLOAD');

-- name: succeed
UPDATE commands SET state = 'SUCCEEDED', completed_at = :now, completed_by = :by
WHERE seq = :seq AND state IN ('DISPATCHED') AND lease_id IS :lease_id;

-- name: fail
UPDATE commands SET state = 'FAILED', completed_at = :now, completed_by = :by
WHERE seq = :seq AND state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND state = :was
  AND lease_id IS :lease_id;

-- name: expire
UPDATE commands SET state = 'EXPIRED', completed_at = :now
WHERE seq = :seq AND state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND state = :was
  AND lease_id IS :lease_id AND deadline <= :now;

-- name: request_cancel
UPDATE commands SET cancel_requested = 1
WHERE seq = :seq AND state = 'DISPATCHED' AND lease_id IS :lease_id;

-- name: list_all
SELECT {command_columns} FROM commands AS c
WHERE c.seq < :before AND (:state IS NULL OR c.state = :state)
ORDER BY c.seq DESC LIMIT :limit;

-- name: list_by_state
SELECT {command_columns} FROM commands AS c INDEXED BY commands_in_state
WHERE c.state = :state AND c.state <> 'SUCCEEDED' AND c.seq < :before
  AND (:deployment_id IS NULL OR c.deployment_id = :deployment_id)
ORDER BY c.seq DESC LIMIT :limit;

-- name: list_ended_badly
SELECT {command_columns} FROM commands AS c INDEXED BY commands_of_deployment_ended_badly
WHERE c.deployment_id = :deployment_id AND c.state = :state AND c.state IN ('FAILED', 'EXPIRED')
  AND c.seq < :before
ORDER BY c.seq DESC LIMIT :limit;

-- name: list_by_deployment
SELECT {command_columns} FROM commands AS c INDEXED BY commands_of_deployment
WHERE c.deployment_id = :deployment_id AND (:state IS NULL OR c.state = :state)
  AND c.seq < :before
ORDER BY c.seq DESC LIMIT :limit;

-- name: list_by_command
SELECT {command_columns} FROM commands AS c INDEXED BY commands_by_name
WHERE c.command = :command AND (:state IS NULL OR c.state = :state) AND c.seq < :before
ORDER BY c.seq DESC LIMIT :limit;

-- name: list_by_deployment_and_command
SELECT {command_columns} FROM commands AS c INDEXED BY commands_of_deployment_by_name
WHERE c.deployment_id = :deployment_id AND c.command = :command
  AND (:state IS NULL OR c.state = :state) AND c.seq < :before
ORDER BY c.seq DESC LIMIT :limit;
