-- What each deployment uses, for its quotas (migration 10). Triggers keep what is removed, and agents.

-- name: usage_of
SELECT u.live_commands, u.open_uploads, u.stored_bytes, u.idempotency_keys, u.agents
FROM usage AS u WHERE u.deployment_id = :deployment_id;

-- name: add_usage
INSERT INTO usage (
    deployment_id, live_commands, open_uploads, stored_bytes, idempotency_keys, dispatched,
    succeeded, failed, cancelled, expired
) VALUES (
    :deployment_id, :live_commands, :open_uploads, :stored_bytes, :idempotency_keys, :dispatched,
    :succeeded, :failed, :cancelled, :expired
)
ON CONFLICT (deployment_id) DO UPDATE
SET live_commands = live_commands + excluded.live_commands,
    open_uploads = open_uploads + excluded.open_uploads,
    stored_bytes = stored_bytes + excluded.stored_bytes,
    idempotency_keys = idempotency_keys + excluded.idempotency_keys,
    dispatched = dispatched + excluded.dispatched, succeeded = succeeded + excluded.succeeded,
    failed = failed + excluded.failed, cancelled = cancelled + excluded.cancelled,
    expired = expired + excluded.expired;

-- name: counted_states
SELECT u.deployment_id, u.open_uploads, u.live_commands - u.open_uploads - u.dispatched,
    u.dispatched, u.succeeded, u.failed, u.cancelled, u.expired
FROM usage AS u WHERE u.deployment_id > '' ORDER BY u.deployment_id;

-- name: counted_states_of
SELECT u.deployment_id, u.open_uploads, u.live_commands - u.open_uploads - u.dispatched,
    u.dispatched, u.succeeded, u.failed, u.cancelled, u.expired
FROM usage AS u WHERE u.deployment_id = :deployment_id;

-- name: recount_usage
-- `form` 3 is params that are awaited. What they announce counts until the command ends, and what has
-- arrived of them until it was removed.
REPLACE INTO usage
    (deployment_id, dispatched, succeeded, failed, cancelled, expired, live_commands, open_uploads,
        idempotency_keys, agents, stored_bytes)
SELECT :deployment_id,
    count(*) FILTER (WHERE s.state = 'DISPATCHED'),
    count(*) FILTER (WHERE s.state = 'SUCCEEDED'),
    count(*) FILTER (WHERE s.state = 'FAILED' AND s.error_code IS NOT 'CANCELLED'),
    count(*) FILTER (WHERE s.state = 'FAILED' AND s.error_code IS 'CANCELLED'),
    count(*) FILTER (WHERE s.state = 'EXPIRED'),
    (SELECT count(*) FROM commands AS c INDEXED BY commands_of_deployment
        WHERE c.deployment_id = :deployment_id AND c.completed_at IS NULL),
    (SELECT count(*) FROM commands AS c INDEXED BY commands_of_deployment
        WHERE c.deployment_id = :deployment_id AND c.state = 'PENDING_UPLOAD'),
    (SELECT count(*) FROM idempotency_keys AS k WHERE k.deployment_id = :deployment_id),
    (SELECT count(*) FROM agents AS a WHERE a.deployment_id = :deployment_id),
    (SELECT coalesce(sum(
            coalesce(CASE
                WHEN p.form <> 3 THEN p.size
                WHEN c.state <> 'PENDING_UPLOAD' THEN p.arrived
                ELSE max(coalesce(p.size, 0), p.arrived) END, 0) + coalesce(r.size, 0)
            + coalesce(s.bytes, 0) + coalesce(length(CAST(c.tags AS BLOB)), 0)), 0)
        FROM commands AS c INDEXED BY commands_of_deployment
        LEFT JOIN params AS p ON p.command = c.seq LEFT JOIN responses AS r ON r.command = c.seq
        LEFT JOIN event_streams AS s ON s.command = c.seq
        WHERE c.deployment_id = :deployment_id)
    + (SELECT coalesce(sum(length(a.registration) + coalesce(length(a.schemas), 0)), 0)
        FROM agents AS a WHERE a.deployment_id = :deployment_id)
FROM commands AS s INDEXED BY commands_of_deployment WHERE s.deployment_id = :deployment_id;

-- name: usage_of_all
SELECT coalesce(sum(stored_bytes), 0), coalesce(sum(agents), 0) FROM usage;

-- name: count_live
SELECT coalesce(sum(open_uploads), 0),
    coalesce(sum(live_commands - open_uploads - dispatched), 0), coalesce(sum(dispatched), 0)
FROM usage;

-- name: oldest_pending
-- One that is not to run yet has no ready_order.
SELECT c.created_at FROM commands AS c INDEXED BY commands_in_state
WHERE c.state = 'PENDING' AND c.state <> 'SUCCEEDED' AND (c.error_code IS 'CANCELLED') = 0
    AND c.ready_order IS NOT NULL
ORDER BY c.created_at LIMIT 1;
