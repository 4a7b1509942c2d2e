-- What each deployment uses, for its quotas (migration 10). Triggers keep what is removed, and agents.

-- name: usage_of
SELECT u.live_commands, u.open_uploads, u.stored_bytes, u.idempotency_keys, u.agents
FROM usage AS u WHERE u.deployment_id = :deployment_id;

-- name: add_usage
INSERT INTO usage
    (deployment_id, live_commands, open_uploads, stored_bytes, idempotency_keys)
VALUES (:deployment_id, :live_commands, :open_uploads, :stored_bytes, :idempotency_keys)
ON CONFLICT (deployment_id) DO UPDATE
SET live_commands = live_commands + excluded.live_commands,
    open_uploads = open_uploads + excluded.open_uploads,
    stored_bytes = stored_bytes + excluded.stored_bytes,
    idempotency_keys = idempotency_keys + excluded.idempotency_keys;

-- name: recount_usage
-- `form` 3 is params that are awaited. What they announce counts until the command ends, and what has
-- arrived of them until it was removed.
REPLACE INTO usage
    (deployment_id, live_commands, open_uploads, idempotency_keys, agents, stored_bytes)
SELECT :deployment_id,
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
                ELSE max(coalesce(p.size, 0), p.arrived) END, 0) + coalesce(r.size, 0)), 0)
        FROM commands AS c INDEXED BY commands_of_deployment
        LEFT JOIN params AS p ON p.command = c.seq LEFT JOIN responses AS r ON r.command = c.seq
        WHERE c.deployment_id = :deployment_id)
    + (SELECT coalesce(sum(length(a.registration) + coalesce(length(a.schemas), 0)), 0)
        FROM agents AS a WHERE a.deployment_id = :deployment_id);

-- name: usage_of_all
SELECT coalesce(sum(stored_bytes), 0), coalesce(sum(agents), 0) FROM usage;

-- name: count_live
SELECT c.state, count(*) FROM commands AS c INDEXED BY commands_in_state
WHERE c.state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND c.state <> 'SUCCEEDED'
GROUP BY c.state;

-- name: oldest_pending
SELECT c.created_at FROM commands AS c INDEXED BY commands_in_state
WHERE c.state = 'PENDING' AND c.state <> 'SUCCEEDED' ORDER BY c.seq LIMIT 1;
