-- Removing what has been kept for long enough, and what an operator removes.

-- name: ended_before
SELECT c.seq, c.command_id FROM commands AS c INDEXED BY commands_ended
WHERE c.state = :state AND c.completed_at IS NOT NULL AND c.completed_at < :before
ORDER BY c.completed_at LIMIT :limit;

-- name: ended_between
SELECT c.seq, c.completed_at FROM commands AS c INDEXED BY commands_ended
WHERE c.state = :state AND c.completed_at >= :since AND c.completed_at < :before
  AND (c.completed_at > :since OR c.seq > :after)
ORDER BY c.completed_at, c.seq LIMIT :limit;

-- name: delete_ended
DELETE FROM commands
WHERE seq = :seq AND state IN ('SUCCEEDED', 'FAILED', 'EXPIRED') AND completed_at IS NOT NULL;

-- name: delete_old_key
DELETE FROM idempotency_keys WHERE command_seq = :seq AND created_at < :before;

-- name: params_path
SELECT CAST(p.data AS TEXT) FROM params AS p WHERE p.command = :seq AND p.form = :form;

-- name: response_path
SELECT CAST(r.data AS TEXT) FROM responses AS r WHERE r.command = :seq AND r.form = :form;

-- name: remove_params
-- Params that never came stay as they are: what they announced counts no more (migration 10).
UPDATE params SET form = :form, data = :data, size = 0, checksum = :checksum, signature = NULL
WHERE command = :seq AND form IN (1, 2);

-- name: remove_response
UPDATE responses SET form = :form, data = :data, size = 0, checksum = :checksum
WHERE command = :seq AND form IN (1, 2);

-- name: left_uploads
SELECT c.seq, c.command_id, c.deployment_id, p.arrived
FROM params AS p INDEXED BY params_arrived CROSS JOIN commands AS c ON c.seq = p.command
WHERE p.arrived > 0 AND p.command > 0 AND c.completed_at IS NOT NULL
ORDER BY p.command LIMIT :limit;

-- name: delete_lines
DELETE FROM event_lines WHERE (command, place) IN (
    SELECT l.command, l.place FROM event_lines AS l WHERE l.command = :seq
    ORDER BY l.place LIMIT :limit
);

-- name: delete_stream
DELETE FROM event_streams WHERE command = :seq;

-- name: awaited_since
SELECT {command_columns} FROM commands AS c INDEXED BY commands_awaited
WHERE c.state = 'PENDING_UPLOAD' AND c.created_at < :before
ORDER BY c.created_at LIMIT :limit;

-- name: delete_agents_unseen
DELETE FROM agents WHERE (deployment_id, agent_id, credential) IN (
    SELECT a.deployment_id, a.agent_id, a.credential FROM agents AS a INDEXED BY agents_seen
    WHERE a.last_seen_at < :before ORDER BY a.last_seen_at LIMIT :limit
);

-- name: delete_agent
DELETE FROM agents WHERE deployment_id = :deployment_id AND agent_id = :agent_id;

-- name: lease_of_agent
SELECT c.command_id FROM commands AS c INDEXED BY commands_holder
WHERE c.state = 'DISPATCHED' AND c.lease_holder = :agent_id AND c.deployment_id = :deployment_id
LIMIT 1;

-- name: delete_tokens_expired
DELETE FROM tokens WHERE token_id IN (
    SELECT t.token_id FROM tokens AS t INDEXED BY tokens_expiring
    WHERE t.expires_at < :before ORDER BY t.expires_at LIMIT :limit
);

-- name: delete_tokens_revoked
DELETE FROM tokens WHERE token_id IN (
    SELECT t.token_id FROM tokens AS t INDEXED BY tokens_revoked
    WHERE t.revoked_at < :before ORDER BY t.revoked_at LIMIT :limit
);

-- name: delete_enrol_tokens_expired
DELETE FROM enrol_tokens WHERE token_hash IN (
    SELECT e.token_hash FROM enrol_tokens AS e INDEXED BY enrol_tokens_expiring
    WHERE e.expires_at < :before ORDER BY e.expires_at LIMIT :limit
);

-- name: delete_enrol_tokens_revoked
DELETE FROM enrol_tokens WHERE token_hash IN (
    SELECT e.token_hash FROM enrol_tokens AS e INDEXED BY enrol_tokens_revoked
    WHERE e.revoked_at < :before ORDER BY e.revoked_at LIMIT :limit
);

-- name: delete_credentials_revoked
DELETE FROM credentials WHERE credential_id IN (
    SELECT c.credential_id FROM credentials AS c INDEXED BY credentials_revoked
    WHERE c.revoked_at < :before ORDER BY c.revoked_at LIMIT :limit
);

-- name: live_command_of_deployment
SELECT c.command_id FROM commands AS c INDEXED BY commands_in_state
WHERE c.state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND c.state <> 'SUCCEEDED'
  AND c.deployment_id = :deployment_id
LIMIT 1;

-- name: credential_of_deployment
-- Every credential, for an administrator who removes a deployment.
SELECT c.credential_id FROM credentials AS c INDEXED BY credentials_enrolled
WHERE c.enrolled_at IS NOT NULL AND c.deployment_id = :deployment_id AND c.revoked_at IS NULL
LIMIT 1;

-- name: enrol_token_of_deployment
-- Every enrolment token, likewise.
SELECT e.token_id FROM enrol_tokens AS e INDEXED BY enrol_tokens_created
WHERE e.created_at IS NOT NULL AND e.deployment_id = :deployment_id AND e.revoked_at IS NULL
  AND e.expires_at > :now AND e.used < e.uses
LIMIT 1;

-- name: delete_agents_of_deployment
DELETE FROM agents WHERE deployment_id = :deployment_id;

-- name: delete_deployment
DELETE FROM deployments WHERE deployment_id = :deployment_id;
