-- Deployments and their targets.

-- name: find_deployment
SELECT d.default_target_id, d.heir_target_id, d.push_url, d.push_token, d.push_by
FROM deployments AS d WHERE d.deployment_id = :deployment_id;

-- name: targets_of
SELECT t.resource_id, t.resource_type FROM targets AS t
WHERE t.deployment_id = :deployment_id ORDER BY t.position;

-- name: insert_deployment
INSERT INTO deployments (deployment_id, created_at) VALUES (:deployment_id, :now);

-- name: configure_deployment
UPDATE deployments
SET default_target_id = :default_target_id
WHERE deployment_id = :deployment_id;

-- name: set_push
UPDATE deployments SET push_url = :push_url, push_token = :push_token, push_by = :push_by
WHERE deployment_id = :deployment_id;

-- name: seal_push_token
UPDATE deployments SET push_token = :sealed
WHERE deployment_id = :deployment_id AND push_token = :former;

-- name: name_heir
UPDATE deployments SET heir_target_id = :target_id
WHERE deployment_id = :deployment_id AND heir_target_id IS NULL;

-- name: insert_target
INSERT INTO targets (deployment_id, position, resource_id, resource_type, created_at)
SELECT :deployment_id, coalesce(max(t.position), -1) + 1, :resource_id, :resource_type, :now
FROM targets AS t WHERE t.deployment_id = :deployment_id;

-- name: remove_target
DELETE FROM targets WHERE deployment_id = :deployment_id AND resource_id = :resource_id;

-- name: forget_heir
UPDATE deployments SET heir_target_id = NULL
WHERE deployment_id = :deployment_id AND heir_target_id = :resource_id;

-- name: live_command_of_target
SELECT c.command_id FROM commands AS c INDEXED BY commands_in_state
WHERE c.state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND c.state <> 'SUCCEEDED'
  AND c.deployment_id = :deployment_id AND c.target_id = :resource_id
LIMIT 1;

-- name: list_deployments
-- Every one: an administrator asks.
SELECT d.deployment_id FROM deployments AS d WHERE d.deployment_id > '' ORDER BY d.deployment_id;

-- name: retype_target
UPDATE targets SET resource_type = :resource_type
WHERE deployment_id = :deployment_id AND resource_id = :resource_id;

-- name: move_ready
-- Waiting commands of one target go to another, or follow it to its new type.
UPDATE commands INDEXED BY commands_ready SET target_id = :to_id, target_type = :to_type
WHERE deployment_id = :deployment_id AND target_id = :from_id AND state = 'PENDING' AND is_push = 0
  AND (target_id <> :to_id OR target_type <> :to_type);

-- name: move_pushes
UPDATE commands INDEXED BY commands_push_due SET target_id = :to_id, target_type = :to_type
WHERE deployment_id = :deployment_id AND state = 'PENDING' AND is_push = 1
  AND push_at IS NOT NULL AND target_id = :from_id
  AND (target_id <> :to_id OR target_type <> :to_type);

-- name: move_awaited
UPDATE commands INDEXED BY commands_in_state SET target_id = :to_id, target_type = :to_type
WHERE state = 'PENDING_UPLOAD' AND state <> 'SUCCEEDED'
  AND deployment_id = :deployment_id AND target_id = :from_id
  AND (target_id <> :to_id OR target_type <> :to_type);

-- name: start_pushing
UPDATE commands INDEXED BY commands_in_state
SET is_push = 1, push_at = max(:now, coalesce(not_before, 0)),
    ready_order = iif(state = 'PENDING', coalesce(ready_order, seq), ready_order)
WHERE state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND state <> 'SUCCEEDED'
  AND deployment_id = :deployment_id AND is_push = 0;

-- name: stop_pushing
UPDATE commands INDEXED BY commands_in_state
SET is_push = 0, push_at = NULL, ready_order = iif(not_before > :now, NULL, ready_order)
WHERE state IN ('PENDING_UPLOAD', 'PENDING', 'DISPATCHED') AND state <> 'SUCCEEDED'
  AND deployment_id = :deployment_id AND is_push = 1;
