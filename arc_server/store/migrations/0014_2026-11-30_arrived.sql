-- Bytes that have been uploaded for params that are awaited. They lie in the blob store until the
-- upload is confirmed, or until the command has ended and they were removed.
ALTER TABLE params ADD COLUMN arrived INTEGER NOT NULL DEFAULT 0;

CREATE INDEX params_arrived ON params (command) WHERE arrived > 0;

DROP TRIGGER usage_of_deleted_command;

CREATE TRIGGER usage_of_deleted_command BEFORE DELETE ON commands BEGIN
    UPDATE usage SET
        live_commands = live_commands - (old.completed_at IS NULL),
        open_uploads = open_uploads - (old.state = 'PENDING_UPLOAD'),
        stored_bytes = stored_bytes
            - coalesce((SELECT CASE
                    WHEN form <> 3 THEN size
                    WHEN old.state <> 'PENDING_UPLOAD' THEN arrived
                    ELSE max(coalesce(size, 0), arrived) END
                FROM params WHERE command = old.seq), 0)
            - coalesce((SELECT size FROM responses WHERE command = old.seq), 0)
    WHERE deployment_id = old.deployment_id;
END;
