-- Finding commands. A search walks along an index from the newest down, over as many entries as fit
-- in its time, and takes those that match: `floor_…` is where it stops. What the index does not
-- judge, `sifted` does. The indexes: migrations/0014.

-- name: sifted
(:states IS NULL
    OR instr(:states, '|' || iif(c.error_code IS 'CANCELLED', 'CANCELLED', c.state) || '|') > 0)
AND (:deployment_id IS NULL OR c.deployment_id = :deployment_id)
AND (:command IS NULL OR c.command = :command)
AND (:target_id IS NULL OR c.target_id = :target_id)
AND (:created_by IS NULL OR c.created_by = :created_by)
AND (:tags IS NULL OR c.tags GLOB :tags)

-- name: created_within
c.created_at >= :since AND (c.created_at, c.seq) < (:before_at, :before_seq)

-- name: not_below_the_floor
(c.created_at, c.seq) >= (:floor_at, :floor_seq)

-- name: floor_created
SELECT c.created_at, c.seq FROM commands AS c INDEXED BY commands_created
WHERE {created_within}
ORDER BY c.created_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_created
SELECT {command_columns} FROM commands AS c INDEXED BY commands_created
WHERE {created_within} AND {not_below_the_floor} AND {sifted}
ORDER BY c.created_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_of_deployment
SELECT c.created_at, c.seq FROM commands AS c INDEXED BY commands_of_deployment
WHERE c.deployment_id = :deployment_id
  AND {created_within}
ORDER BY c.created_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_of_deployment
SELECT {command_columns} FROM commands AS c INDEXED BY commands_of_deployment
WHERE c.deployment_id = :deployment_id
  AND {created_within} AND {not_below_the_floor} AND {sifted}
ORDER BY c.created_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_by_name
SELECT c.created_at, c.seq FROM commands AS c INDEXED BY commands_by_name
WHERE c.command = :command
  AND {created_within}
ORDER BY c.created_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_by_name
SELECT {command_columns} FROM commands AS c INDEXED BY commands_by_name
WHERE c.command = :command
  AND {created_within} AND {not_below_the_floor} AND {sifted}
ORDER BY c.created_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_of_deployment_by_name
SELECT c.created_at, c.seq FROM commands AS c INDEXED BY commands_of_deployment_by_name
WHERE c.deployment_id = :deployment_id AND c.command = :command
  AND {created_within}
ORDER BY c.created_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_of_deployment_by_name
SELECT {command_columns} FROM commands AS c INDEXED BY commands_of_deployment_by_name
WHERE c.deployment_id = :deployment_id AND c.command = :command
  AND {created_within} AND {not_below_the_floor} AND {sifted}
ORDER BY c.created_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_in_state
SELECT c.created_at, c.seq FROM commands AS c INDEXED BY commands_in_state
WHERE c.state = :state AND c.state <> 'SUCCEEDED'
  AND (c.error_code IS 'CANCELLED') = :is_cancelled
  AND {created_within}
ORDER BY c.created_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_in_state
SELECT {command_columns} FROM commands AS c INDEXED BY commands_in_state
WHERE c.state = :state AND c.state <> 'SUCCEEDED'
  AND (c.error_code IS 'CANCELLED') = :is_cancelled
  AND {created_within} AND {not_below_the_floor} AND {sifted}
ORDER BY c.created_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_ended_badly
SELECT c.created_at, c.seq FROM commands AS c INDEXED BY commands_of_deployment_ended_badly
WHERE c.deployment_id = :deployment_id AND c.state = :state
  AND c.state IN ('FAILED', 'EXPIRED') AND (c.error_code IS 'CANCELLED') = :is_cancelled
  AND {created_within}
ORDER BY c.created_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_ended_badly
SELECT {command_columns} FROM commands AS c INDEXED BY commands_of_deployment_ended_badly
WHERE c.deployment_id = :deployment_id AND c.state = :state
  AND c.state IN ('FAILED', 'EXPIRED') AND (c.error_code IS 'CANCELLED') = :is_cancelled
  AND {created_within} AND {not_below_the_floor} AND {sifted}
ORDER BY c.created_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_of_target
SELECT c.created_at, c.seq FROM commands AS c INDEXED BY commands_of_target
WHERE c.target_id = :target_id AND c.target_id <> 'default'
  AND {created_within}
ORDER BY c.created_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_of_target
SELECT {command_columns} FROM commands AS c INDEXED BY commands_of_target
WHERE c.target_id = :target_id AND c.target_id <> 'default'
  AND {created_within} AND {not_below_the_floor} AND {sifted}
ORDER BY c.created_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_by_sender
SELECT c.created_at, c.seq FROM commands AS c INDEXED BY commands_by_sender
WHERE c.created_by = :created_by AND c.created_by IS NOT NULL
  AND {created_within}
ORDER BY c.created_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_by_sender
SELECT {command_columns} FROM commands AS c INDEXED BY commands_by_sender
WHERE c.created_by = :created_by AND c.created_by IS NOT NULL
  AND {created_within} AND {not_below_the_floor} AND {sifted}
ORDER BY c.created_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_ended
SELECT c.completed_at, c.seq FROM commands AS c INDEXED BY commands_ended
WHERE c.state = :state AND c.completed_at IS NOT NULL
  AND c.completed_at >= :since AND (c.completed_at, c.seq) < (:before_at, :before_seq)
ORDER BY c.completed_at DESC, c.seq DESC LIMIT 1 OFFSET :walked;

-- name: find_ended
SELECT {command_columns} FROM commands AS c INDEXED BY commands_ended
WHERE c.state = :state AND c.completed_at IS NOT NULL
  AND c.completed_at >= :since AND (c.completed_at, c.seq) < (:before_at, :before_seq)
  AND (c.completed_at, c.seq) >= (:floor_at, :floor_seq)
  AND (:created_since IS NULL OR c.created_at >= :created_since)
  AND (:created_before IS NULL OR c.created_at < :created_before) AND {sifted}
ORDER BY c.completed_at DESC, c.seq DESC LIMIT :limit;

-- name: floor_by_key
SELECT k.created_at, k.command_seq FROM idempotency_keys AS k INDEXED BY idempotency_keys_by_key
WHERE k.key = :key AND k.command_seq IS NOT NULL
  AND k.created_at >= :since AND (k.created_at, k.command_seq) < (:before_at, :before_seq)
ORDER BY k.created_at DESC, k.command_seq DESC LIMIT 1 OFFSET :walked;

-- name: find_by_key
SELECT {command_columns}
FROM idempotency_keys AS k INDEXED BY idempotency_keys_by_key
CROSS JOIN commands AS c ON c.seq = k.command_seq
WHERE k.key = :key AND k.command_seq IS NOT NULL
  AND k.created_at >= :since AND (k.created_at, k.command_seq) < (:before_at, :before_seq)
  AND (k.created_at, k.command_seq) >= (:floor_at, :floor_seq)
  AND (:ended_since IS NULL OR c.completed_at >= :ended_since)
  AND (:ended_before IS NULL OR c.completed_at < :ended_before) AND {sifted}
ORDER BY k.created_at DESC, k.command_seq DESC LIMIT :limit;

-- name: floor_by_tag
SELECT t.created_at, t.command FROM command_tags AS t
WHERE t.key = :tag AND t.value = :value
  AND t.created_at >= :since AND (t.created_at, t.command) < (:before_at, :before_seq)
ORDER BY t.created_at DESC, t.command DESC LIMIT 1 OFFSET :walked;

-- name: find_by_tag
SELECT {command_columns} FROM command_tags AS t CROSS JOIN commands AS c ON c.seq = t.command
WHERE t.key = :tag AND t.value = :value
  AND t.created_at >= :since AND (t.created_at, t.command) < (:before_at, :before_seq)
  AND (t.created_at, t.command) >= (:floor_at, :floor_seq) AND {sifted}
ORDER BY t.created_at DESC, t.command DESC LIMIT :limit;
