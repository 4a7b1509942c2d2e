-- What each deployment uses, for its quotas. A batch adds up what its operations made, and writes a
-- row for each deployment at its end. Triggers subtract what any operation removes.

CREATE TABLE usage (
    deployment_id    TEXT    PRIMARY KEY,
    live_commands    INTEGER NOT NULL DEFAULT 0,
    open_uploads     INTEGER NOT NULL DEFAULT 0,   -- commands in PENDING_UPLOAD
    stored_bytes     INTEGER NOT NULL DEFAULT 0,   -- bodies, announced ones too, and registrations
    idempotency_keys INTEGER NOT NULL DEFAULT 0,
    agents           INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- `form` 3 is params that are awaited. What they announce counts until the command ends.
INSERT INTO usage (deployment_id, live_commands, open_uploads, stored_bytes)
SELECT c.deployment_id, sum(c.completed_at IS NULL), sum(c.state = 'PENDING_UPLOAD'),
    sum(iif(p.form = 3 AND c.state <> 'PENDING_UPLOAD', 0, coalesce(p.size, 0))
        + coalesce(r.size, 0))
FROM commands AS c
LEFT JOIN params AS p ON p.command = c.seq
LEFT JOIN responses AS r ON r.command = c.seq
GROUP BY c.deployment_id;

INSERT INTO usage (deployment_id, idempotency_keys)
SELECT deployment_id, count(*) FROM idempotency_keys WHERE true GROUP BY deployment_id
ON CONFLICT (deployment_id) DO UPDATE SET idempotency_keys = excluded.idempotency_keys;

INSERT INTO usage (deployment_id, agents, stored_bytes)
SELECT deployment_id, count(*), sum(length(registration) + coalesce(length(schemas), 0))
FROM agents WHERE true GROUP BY deployment_id
ON CONFLICT (deployment_id) DO UPDATE
SET agents = excluded.agents, stored_bytes = stored_bytes + excluded.stored_bytes;

CREATE TRIGGER usage_of_deleted_command BEFORE DELETE ON commands BEGIN
    UPDATE usage SET
        live_commands = live_commands - (old.completed_at IS NULL),
        open_uploads = open_uploads - (old.state = 'PENDING_UPLOAD'),
        stored_bytes = stored_bytes
            - coalesce((SELECT iif(form = 3 AND old.state <> 'PENDING_UPLOAD', 0, size)
                FROM params WHERE command = old.seq), 0)
            - coalesce((SELECT size FROM responses WHERE command = old.seq), 0)
    WHERE deployment_id = old.deployment_id;
END;

-- The batch has added the size of the new body.
CREATE TRIGGER usage_of_replaced_params AFTER UPDATE OF size ON params BEGIN
    UPDATE usage SET stored_bytes = stored_bytes - coalesce(old.size, 0)
    WHERE deployment_id = (SELECT deployment_id FROM commands WHERE seq = old.command);
END;

CREATE TRIGGER usage_of_replaced_response AFTER UPDATE OF size ON responses BEGIN
    UPDATE usage SET stored_bytes = stored_bytes - coalesce(old.size, 0)
    WHERE deployment_id = (SELECT deployment_id FROM commands WHERE seq = old.command);
END;

CREATE TRIGGER usage_of_deleted_key AFTER DELETE ON idempotency_keys BEGIN
    UPDATE usage SET idempotency_keys = idempotency_keys - 1
    WHERE deployment_id = old.deployment_id;
END;

CREATE TRIGGER usage_of_agent AFTER INSERT ON agents BEGIN
    INSERT INTO usage (deployment_id, agents, stored_bytes)
    VALUES (new.deployment_id, 1, length(new.registration) + coalesce(length(new.schemas), 0))
    ON CONFLICT (deployment_id) DO UPDATE
    SET agents = agents + 1, stored_bytes = stored_bytes + excluded.stored_bytes;
END;

CREATE TRIGGER usage_of_changed_agent AFTER UPDATE OF registration, schemas ON agents BEGIN
    UPDATE usage SET stored_bytes = stored_bytes
        + length(new.registration) + coalesce(length(new.schemas), 0)
        - length(old.registration) - coalesce(length(old.schemas), 0)
    WHERE deployment_id = old.deployment_id;
END;

CREATE TRIGGER usage_of_deleted_agent AFTER DELETE ON agents BEGIN
    UPDATE usage SET agents = agents - 1, stored_bytes = stored_bytes
        - length(old.registration) - coalesce(length(old.schemas), 0)
    WHERE deployment_id = old.deployment_id;
END;
