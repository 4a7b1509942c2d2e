-- Leasing, renewing and releasing.

-- name: ready_commands
SELECT c.seq FROM commands AS c INDEXED BY commands_ready
WHERE c.deployment_id = :deployment_id AND c.target_id = :target_id
  AND c.state = 'PENDING' AND c.is_push = 0 AND c.ready_order > :frozen_below
ORDER BY c.ready_order LIMIT :limit;

-- name: due_pushes
SELECT c.seq FROM commands AS c INDEXED BY commands_push_due
WHERE c.deployment_id = :deployment_id AND c.state = 'PENDING' AND c.is_push = 1
  AND c.push_at <= :now
ORDER BY c.push_at, c.ready_order LIMIT :limit;

-- name: first_pushes
-- The first waiting push of every deployment that is pushed to: a seek for each.
SELECT d.deployment_id, c.push_at, c.ready_order
FROM deployments AS d INDEXED BY deployments_pushed
CROSS JOIN commands AS c ON c.seq = (
    SELECT w.seq FROM commands AS w INDEXED BY commands_push_due
    WHERE w.deployment_id = d.deployment_id AND w.state = 'PENDING' AND w.is_push = 1
      AND w.push_at IS NOT NULL
    ORDER BY w.push_at, w.ready_order LIMIT 1
)
WHERE d.push_url IS NOT NULL AND d.deployment_id > '';

-- name: list_pushed
SELECT d.deployment_id FROM deployments AS d INDEXED BY deployments_pushed
WHERE d.push_url IS NOT NULL AND d.deployment_id > '' ORDER BY d.deployment_id;

-- name: put_circuit
INSERT INTO push_circuits (deployment_id, opened_at, retry_at, times, reason)
SELECT d.deployment_id, :opened_at, :retry_at, :times, :reason
FROM deployments AS d WHERE d.deployment_id = :deployment_id AND d.push_url IS NOT NULL
ON CONFLICT (deployment_id) DO UPDATE
SET opened_at = excluded.opened_at, retry_at = excluded.retry_at, times = excluded.times,
    reason = excluded.reason;

-- name: close_circuit
DELETE FROM push_circuits WHERE deployment_id = :deployment_id;

-- name: find_circuit
SELECT p.opened_at, p.retry_at, p.times, p.reason
FROM push_circuits AS p WHERE p.deployment_id = :deployment_id;

-- name: list_circuits
SELECT p.deployment_id, p.opened_at, p.retry_at, p.times, p.reason
FROM push_circuits AS p WHERE p.deployment_id > '' ORDER BY p.deployment_id;

-- name: dispatch
UPDATE commands
SET state = 'DISPATCHED', dispatched_at = :now, lease_id = :lease_id, lease_attempt = :lease_attempt,
    lease_expires_at = :expires_at, lease_holder = :holder, lease_credential = :credential
WHERE seq = :seq AND state IN ('PENDING');

-- name: dispatch_again
-- The holder of a lapsed lease responds after all, before the command is leased again.
UPDATE commands SET state = 'DISPATCHED'
WHERE seq = :seq AND state IN ('PENDING') AND lease_id = :lease_id;

-- name: find_lease
SELECT {command_columns} FROM commands AS c INDEXED BY commands_lease
WHERE c.state = 'DISPATCHED' AND c.lease_id = :lease_id;

-- name: renew
UPDATE commands SET lease_expires_at = :expires_at
WHERE seq = :seq AND state = 'DISPATCHED' AND lease_id = :lease_id;

-- name: hand_back
UPDATE commands
SET state = 'PENDING', attempt = :attempt, target_id = :target_id, target_type = :target_type,
    push_at = coalesce(:push_at, push_at)
WHERE seq = :seq AND state IN ('DISPATCHED') AND lease_id = :lease_id;

-- name: keep_past_lease
INSERT INTO past_leases (
    command, place, lease_id, attempt, holder, credential, leased_at, ended_at, how
) VALUES (
    :seq, :place, :lease_id, :attempt, :holder, :credential, :leased_at, :now, :how
);

-- name: drop_past_leases
DELETE FROM past_leases WHERE command = :seq AND place <= (
    SELECT l.place FROM past_leases AS l WHERE l.command = :seq
    ORDER BY l.place DESC LIMIT 1 OFFSET :keep
);

-- name: past_leases
SELECT l.lease_id, l.attempt, l.holder, l.credential, l.leased_at, l.ended_at, l.how
FROM commands AS c CROSS JOIN past_leases AS l ON l.command = c.seq
WHERE c.command_id = :command_id ORDER BY l.place;

-- name: held_by
SELECT {command_columns} FROM commands AS c INDEXED BY commands_holder
WHERE c.state = 'DISPATCHED' AND c.lease_holder = :holder AND c.deployment_id = :deployment_id
  AND c.lease_credential IS :credential;

-- name: leases_of_revoked
-- A walk over all live leases, which only a revocation takes.
SELECT {command_columns} FROM commands AS c INDEXED BY commands_lapse
WHERE c.state = 'DISPATCHED' AND c.lease_expires_at IS NOT NULL AND c.lease_credential IN (
    SELECT t.token_id FROM tokens AS t INDEXED BY tokens_revoked WHERE t.revoked_at IS NOT NULL
    UNION ALL
    SELECT r.credential_id FROM credentials AS r INDEXED BY credentials_revoked
    WHERE r.revoked_at IS NOT NULL
)
LIMIT :limit;
