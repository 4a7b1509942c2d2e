-- Deployments and their targets, agents, tokens.

-- name: find_deployment
SELECT d.default_target_id, d.heir_target_id, d.push_url, d.push_token
FROM deployments AS d WHERE d.deployment_id = :deployment_id;

-- name: targets_of
SELECT t.resource_id, t.resource_type FROM targets AS t
WHERE t.deployment_id = :deployment_id ORDER BY t.position;

-- name: insert_deployment
INSERT INTO deployments (deployment_id, created_at) VALUES (:deployment_id, :now);

-- name: configure_deployment
UPDATE deployments
SET default_target_id = :default_target_id, push_url = :push_url, push_token = :push_token
WHERE deployment_id = :deployment_id;

-- name: name_heir
UPDATE deployments SET heir_target_id = :target_id
WHERE deployment_id = :deployment_id AND heir_target_id IS NULL;

-- name: insert_target
INSERT INTO targets (deployment_id, position, resource_id, resource_type, created_at)
VALUES (:deployment_id, :position, :resource_id, :resource_type, :now);

-- name: retype_target
UPDATE targets SET resource_type = :resource_type
WHERE deployment_id = :deployment_id AND resource_id = :resource_id;

-- name: move_ready
-- What waits for agents of one target goes to another, or follows it to its new type.
UPDATE commands INDEXED BY commands_ready SET target_id = :to_id, target_type = :to_type
WHERE deployment_id = :deployment_id AND target_id = :from_id AND state = 'PENDING' AND is_push = 0
  AND (target_id <> :to_id OR target_type <> :to_type);

-- name: move_pushes
UPDATE commands INDEXED BY commands_push_due SET target_id = :to_id, target_type = :to_type
WHERE state = 'PENDING' AND is_push = 1 AND push_at IS NOT NULL
  AND deployment_id = :deployment_id AND target_id = :from_id
  AND (target_id <> :to_id OR target_type <> :to_type);

-- name: move_awaited
UPDATE commands INDEXED BY commands_in_state SET target_id = :to_id, target_type = :to_type
WHERE state = 'PENDING_UPLOAD' AND state <> 'SUCCEEDED'
  AND deployment_id = :deployment_id AND target_id = :from_id
  AND (target_id <> :to_id OR target_type <> :to_type);

-- name: start_pushing
UPDATE commands INDEXED BY commands_in_state SET is_push = 1, push_at = :now
WHERE state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND state <> 'SUCCEEDED'
  AND deployment_id = :deployment_id AND is_push = 0;

-- name: stop_pushing
UPDATE commands INDEXED BY commands_in_state SET is_push = 0, push_at = NULL
WHERE state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND state <> 'SUCCEEDED'
  AND deployment_id = :deployment_id AND is_push = 1;

-- name: put_agent
INSERT INTO agents (agent_id, deployment_id, registration, schemas, first_seen_at, last_seen_at)
VALUES (:agent_id, :deployment_id, :registration, :schemas, :now, :now)
ON CONFLICT (deployment_id, agent_id) DO UPDATE
SET registration = excluded.registration, schemas = excluded.schemas,
    last_seen_at = max(last_seen_at, excluded.last_seen_at);

-- name: find_agent
SELECT a.agent_id, a.registration, a.first_seen_at, a.last_seen_at, a.schemas
FROM agents AS a WHERE a.deployment_id = :deployment_id AND a.agent_id = :agent_id;

-- name: touch_agent
UPDATE agents SET last_seen_at = :now
WHERE deployment_id = :deployment_id AND agent_id = :agent_id AND last_seen_at < :now;

-- name: list_agents
SELECT a.agent_id, a.registration, a.first_seen_at, a.last_seen_at,
    CASE WHEN :with_schemas THEN a.schemas END
FROM agents AS a INDEXED BY agents_seen
WHERE a.last_seen_at >= :seen_since
ORDER BY a.last_seen_at DESC, a.deployment_id DESC, a.agent_id DESC LIMIT :limit;

-- name: list_agents_of_deployment
SELECT a.agent_id, a.registration, a.first_seen_at, a.last_seen_at,
    CASE WHEN :with_schemas THEN a.schemas END
FROM agents AS a INDEXED BY agents_of_deployment_seen
WHERE a.deployment_id = :deployment_id AND a.last_seen_at >= :seen_since
ORDER BY a.last_seen_at DESC, a.agent_id DESC LIMIT :limit;

-- name: token_columns
t.token_hash, t.token_id, t.scope, t.created_at, t.deployment_id, t.revoked_at

-- name: put_token
INSERT INTO tokens (token_hash, token_id, scope, created_at, deployment_id, revoked_at)
VALUES (:token_hash, :token_id, :scope, :created_at, :deployment_id, :revoked_at);

-- name: find_token
SELECT {token_columns} FROM tokens AS t WHERE t.token_hash = :token_hash;

-- name: list_tokens
-- Every token: there are few, and an administrator asks.
SELECT {token_columns} FROM tokens AS t INDEXED BY tokens_created
WHERE t.created_at IS NOT NULL ORDER BY t.created_at, t.token_id;

-- name: revoke_token
UPDATE tokens SET revoked_at = :now WHERE token_id = :token_id AND revoked_at IS NULL;

-- name: has_token
SELECT 1 FROM tokens AS t WHERE t.token_id = :token_id;
