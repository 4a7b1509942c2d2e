-- What is kept, and for how long: each index holds what time ends, in the order in which it does.

CREATE INDEX commands_ended ON commands (state, completed_at)
    WHERE completed_at IS NOT NULL;

CREATE INDEX commands_awaited ON commands (created_at)
    WHERE state = 'PENDING_UPLOAD';

CREATE INDEX tokens_expiring ON tokens (expires_at, token_id)
    WHERE expires_at IS NOT NULL;

CREATE INDEX enrol_tokens_expiring ON enrol_tokens (expires_at);

CREATE INDEX enrol_tokens_revoked ON enrol_tokens (revoked_at)
    WHERE revoked_at IS NOT NULL;
