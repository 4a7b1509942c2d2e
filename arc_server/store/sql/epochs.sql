-- Epochs: a restore begins one.

-- name: epochs
SELECT e.epoch, e.numbers_from, e.backed_up_at, e.began_at, e.frozen_until, e.keys_unknown_until
FROM epochs AS e ORDER BY e.number;

-- name: begin_epoch
UPDATE epochs
SET began_at = :now, frozen_until = :frozen_until, keys_unknown_until = :keys_unknown_until
WHERE epoch = :epoch AND began_at IS NULL;

-- name: freeze_leases
UPDATE commands INDEXED BY commands_lapse
SET lease_expires_at = max(lease_expires_at, :until)
WHERE state = 'DISPATCHED' AND lease_expires_at IS NOT NULL;

-- name: freeze_pushes
UPDATE commands INDEXED BY commands_push_due
SET push_at = max(push_at, :until)
WHERE deployment_id > '' AND state = 'PENDING' AND is_push = 1 AND push_at IS NOT NULL;
