-- Push that operators set up, and that one receiver cannot hold up for the others.

-- Who set the push URL by `arc-server deployment set`. NULL: the configuration.
ALTER TABLE deployments ADD COLUMN push_by TEXT;

CREATE INDEX deployments_pushed ON deployments (deployment_id) WHERE push_url IS NOT NULL;

-- What the dispatcher owes to each deployment, by when it is due.
DROP INDEX commands_push_due;
CREATE INDEX commands_push_due ON commands (deployment_id, push_at, ready_order)
    WHERE state = 'PENDING' AND is_push = 1;

-- The circuits that are not closed: of push URLs that do not answer.
CREATE TABLE push_circuits (
    deployment_id TEXT    PRIMARY KEY REFERENCES deployments (deployment_id) ON DELETE CASCADE,
    opened_at     INTEGER NOT NULL,
    retry_at      INTEGER NOT NULL,
    times         INTEGER NOT NULL,
    reason        TEXT    NOT NULL
) STRICT, WITHOUT ROWID;
