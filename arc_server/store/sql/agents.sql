-- The directory of agents.

-- name: put_agent
INSERT INTO agents
    (agent_id, deployment_id, credential, registration, schemas, first_seen_at, last_seen_at)
VALUES (:agent_id, :deployment_id, :credential, :registration, :schemas, :now, :now)
ON CONFLICT (deployment_id, agent_id, credential) DO UPDATE
SET registration = excluded.registration, schemas = excluded.schemas,
    last_seen_at = max(last_seen_at, excluded.last_seen_at);

-- name: drop_unowned_agent
-- It registered with an earlier release, or while no token was needed.
DELETE FROM agents
WHERE deployment_id = :deployment_id AND agent_id = :agent_id AND credential = '';

-- name: find_agent
SELECT a.agent_id, a.deployment_id, a.credential, a.registration, a.first_seen_at, a.last_seen_at,
    a.schemas
FROM agents AS a
WHERE a.deployment_id = :deployment_id AND a.agent_id = :agent_id AND a.credential = :credential;

-- name: silent_agent
SELECT a.agent_id FROM agents AS a INDEXED BY agents_of_deployment_seen
WHERE a.deployment_id = :deployment_id AND a.last_seen_at < :before LIMIT 1;

-- name: drop_silent_agent
DELETE FROM agents WHERE (deployment_id, agent_id, credential) = (
    SELECT a.deployment_id, a.agent_id, a.credential
    FROM agents AS a INDEXED BY agents_of_deployment_seen
    WHERE a.deployment_id = :deployment_id AND a.last_seen_at < :before
    ORDER BY a.last_seen_at LIMIT 1
);

-- name: touch_agent
UPDATE agents SET last_seen_at = :now
WHERE deployment_id = :deployment_id AND agent_id = :agent_id AND credential = :credential
  AND last_seen_at < :now;

-- name: list_agents
SELECT a.agent_id, a.deployment_id, a.credential, a.registration, a.first_seen_at, a.last_seen_at,
    CASE WHEN :with_schemas THEN a.schemas END
FROM agents AS a
WHERE (a.deployment_id, a.agent_id, a.credential)
    > (:after_deployment, :after_agent, :after_credential)
  AND a.last_seen_at >= :seen_since
ORDER BY a.deployment_id, a.agent_id, a.credential LIMIT :limit;

-- name: list_agents_of_deployment
SELECT a.agent_id, a.deployment_id, a.credential, a.registration, a.first_seen_at, a.last_seen_at,
    CASE WHEN :with_schemas THEN a.schemas END
FROM agents AS a
WHERE a.deployment_id = :deployment_id
  AND (a.agent_id, a.credential) > (:after_agent, :after_credential)
  AND a.last_seen_at >= :seen_since
ORDER BY a.agent_id, a.credential LIMIT :limit;

-- name: latest_agents
SELECT a.agent_id, a.deployment_id, a.credential, a.registration, a.first_seen_at, a.last_seen_at,
    NULL
FROM agents AS a INDEXED BY agents_of_deployment_seen
WHERE a.deployment_id = :deployment_id
ORDER BY a.last_seen_at DESC, a.agent_id DESC, a.credential DESC LIMIT :limit;
