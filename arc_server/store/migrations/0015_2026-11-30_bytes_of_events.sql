-- Events count in the bytes that a deployment stores: the octets of its lines, 32 for the row of each,
-- and the progress. `dropped` counts the lines that the quota left no room for, too.

ALTER TABLE event_streams ADD COLUMN bytes INTEGER NOT NULL DEFAULT 0;

UPDATE event_streams SET bytes = coalesce(length(progress), 0) + coalesce(
    (SELECT sum(length(CAST(l.message AS BLOB)) + 32)
    FROM event_lines AS l WHERE l.command = event_streams.command), 0);

UPDATE usage SET stored_bytes = stored_bytes + coalesce(
    (SELECT sum(s.bytes) FROM commands AS c JOIN event_streams AS s ON s.command = c.seq
    WHERE c.deployment_id = usage.deployment_id), 0);

-- Where a command is deleted with its events, it is gone by now, and its own trigger has counted.
CREATE TRIGGER usage_of_deleted_events AFTER DELETE ON event_streams BEGIN
    UPDATE usage SET stored_bytes = stored_bytes - old.bytes
    WHERE deployment_id = (SELECT deployment_id FROM commands WHERE seq = old.command);
END;

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
            - coalesce((SELECT bytes FROM event_streams WHERE command = old.seq), 0)
    WHERE deployment_id = old.deployment_id;
END;
