-- What each deployment uses, for its quotas (migration 11). Triggers keep what is removed, and agents.

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
