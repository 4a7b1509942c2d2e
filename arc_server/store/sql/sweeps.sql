-- Changes that time makes with no request.

-- name: overdue
SELECT {command_columns} FROM commands AS c INDEXED BY commands_deadline
WHERE c.deadline <= :now AND c.completed_at IS NULL
ORDER BY c.deadline LIMIT :limit;

-- name: lapsed
SELECT {command_columns} FROM commands AS c INDEXED BY commands_lapse
WHERE c.state = 'DISPATCHED' AND c.lease_expires_at <= :now
ORDER BY c.lease_expires_at LIMIT :limit;

-- name: delayed
SELECT {command_columns} FROM commands AS c INDEXED BY commands_delayed
WHERE c.not_before <= :now AND c.state = 'PENDING' AND c.ready_order IS NULL
ORDER BY c.not_before LIMIT :limit;

-- name: release_delayed
UPDATE commands SET ready_order = :ready_order
WHERE seq = :seq AND state = 'PENDING' AND ready_order IS NULL;

-- name: shift_leases
UPDATE commands INDEXED BY commands_lapse
SET lease_expires_at = lease_expires_at + :shift,
    push_at = iif(push_at IS not_before, push_at, push_at + :shift)
WHERE state = 'DISPATCHED' AND lease_expires_at IS NOT NULL;

-- name: shift_pushes
UPDATE commands INDEXED BY commands_push_due
SET push_at = iif(push_at IS not_before, push_at, push_at + :shift)
WHERE deployment_id > '' AND state = 'PENDING' AND is_push = 1 AND push_at IS NOT NULL;

-- name: shift_sign_of_life
UPDATE signs_of_life SET seen_at = seen_at + :shift WHERE id = 1;

-- name: grant_grace
UPDATE commands INDEXED BY commands_lapse SET lease_expires_at = :until
WHERE state = 'DISPATCHED' AND lease_expires_at >= :lapsed_since AND lease_expires_at <= :now;

-- name: has_live_leases
SELECT EXISTS (
    SELECT 1 FROM commands AS c INDEXED BY commands_lapse
    WHERE c.state = 'DISPATCHED' AND c.lease_expires_at IS NOT NULL
);

-- name: forget_keys
DELETE FROM idempotency_keys WHERE (deployment_id, command, key, scope) IN (
    SELECT k.deployment_id, k.command, k.key, k.scope
    FROM idempotency_keys AS k INDEXED BY idempotency_keys_orphaned
    WHERE k.command_seq IS NULL AND k.created_at < :before
    ORDER BY k.created_at LIMIT :limit
);

-- name: put_sign_of_life
INSERT INTO signs_of_life (id, seen_at) VALUES (1, :now)
ON CONFLICT (id) DO UPDATE SET seen_at = max(seen_at, excluded.seen_at);

-- name: last_sign_of_life
SELECT s.seen_at FROM signs_of_life AS s WHERE s.id = 1;
