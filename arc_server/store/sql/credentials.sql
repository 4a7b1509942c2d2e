-- Tokens, enrolment tokens, credentials of agents, their keys, and how often anything was revoked.

-- name: token_columns
t.token_id, t.scope, t.name, t.created_at, t.created_by, t.deployments, t.commands, t.target_id,
t.target_type, t.agent_id, t.expires_at, t.revoked_at, t.last_used_at

-- name: put_token
INSERT INTO tokens (
    token_id, scope, name, created_at, created_by, deployments, commands, target_id, target_type,
    agent_id, expires_at, revoked_at, last_used_at
) VALUES (
    :token_id, :scope, :name, :created_at, :created_by, :deployments, :commands, :target_id,
    :target_type, :agent_id, :expires_at, :revoked_at, :last_used_at
);

-- name: put_token_secret
INSERT INTO token_secrets (token_hash, token_id, created_at, ends_at)
VALUES (:token_hash, :token_id, :created_at, :ends_at);

-- name: find_token
SELECT s.token_hash, s.created_at, s.ends_at, {token_columns}
FROM token_secrets AS s JOIN tokens AS t ON t.token_id = s.token_id
WHERE s.token_hash = :token_hash;

-- name: end_token_secrets
UPDATE token_secrets SET ends_at = coalesce(min(ends_at, :ends_at), :ends_at)
WHERE token_id = :token_id;

-- name: drop_ended_token_secrets
DELETE FROM token_secrets WHERE token_id = :token_id AND ends_at <= :now;

-- name: use_token
UPDATE tokens SET last_used_at = :at
WHERE token_id = :token_id AND (last_used_at IS NULL OR last_used_at < :at);

-- name: list_tokens
-- Every token: there are few, and an administrator asks.
SELECT {token_columns} FROM tokens AS t INDEXED BY tokens_created
WHERE t.created_at IS NOT NULL ORDER BY t.created_at, t.token_id;

-- name: revoke_token
UPDATE tokens SET revoked_at = :now WHERE token_id = :token_id AND revoked_at IS NULL;

-- name: token_by_id
SELECT {token_columns} FROM tokens AS t WHERE t.token_id = :token_id;

-- name: revoked_ids
-- Every one: a server reads them after a revocation.
SELECT t.token_id FROM tokens AS t INDEXED BY tokens_revoked WHERE t.revoked_at IS NOT NULL
UNION ALL
SELECT r.credential_id FROM credentials AS r INDEXED BY credentials_revoked
WHERE r.revoked_at IS NOT NULL;

-- name: enrol_token_columns
e.token_hash, e.token_id, e.deployment_id, e.uses, e.used, e.created_at, e.expires_at, e.revoked_at,
e.target_id, e.target_type

-- name: put_enrol_token
INSERT INTO enrol_tokens
    (token_hash, token_id, deployment_id, uses, used, created_at, expires_at, revoked_at,
    target_id, target_type)
VALUES
    (:token_hash, :token_id, :deployment_id, :uses, :used, :created_at, :expires_at, :revoked_at,
    :target_id, :target_type);

-- name: find_enrol_token
SELECT {enrol_token_columns} FROM enrol_tokens AS e WHERE e.token_hash = :token_hash;

-- name: list_enrol_tokens
-- Every one: there are few, and an administrator asks.
SELECT {enrol_token_columns} FROM enrol_tokens AS e INDEXED BY enrol_tokens_created
WHERE e.created_at IS NOT NULL ORDER BY e.created_at, e.token_id;

-- name: use_enrol_token
UPDATE enrol_tokens SET used = used + 1
WHERE token_hash = :token_hash AND used < uses AND revoked_at IS NULL AND expires_at > :now;

-- name: revoke_enrol_token
UPDATE enrol_tokens SET revoked_at = coalesce(revoked_at, :now) WHERE token_id = :token_id;

-- name: credential_columns
c.credential_id, c.deployment_id, c.hostname, c.enrol_token_id, c.enrolled_at, c.revoked_at,
c.target_id, c.target_type, c.is_target_bound

-- name: key_columns
k.key_id, k.credential_id, k.public_key, k.made_at, k.used_at, k.ends_at

-- name: put_credential
INSERT INTO credentials (
    credential_id, deployment_id, hostname, enrol_token_id, enrolled_at, target_id, target_type,
    is_target_bound
) VALUES (
    :credential_id, :deployment_id, :hostname, :enrol_token_id, :now, :target_id, :target_type, 1
);

-- name: find_credential
SELECT {credential_columns} FROM credentials AS c WHERE c.credential_id = :credential_id;

-- name: list_credentials
-- Every one: an administrator asks.
SELECT {credential_columns} FROM credentials AS c INDEXED BY credentials_enrolled
WHERE c.enrolled_at IS NOT NULL ORDER BY c.enrolled_at, c.credential_id;

-- name: revoke_credential
UPDATE credentials SET revoked_at = :now
WHERE credential_id = :credential_id AND revoked_at IS NULL;

-- name: put_key
INSERT INTO agent_keys (key_id, credential_id, public_key, made_at)
VALUES (:key_id, :credential_id, :public_key, :now);

-- name: find_key
SELECT {key_columns}, {credential_columns}
FROM agent_keys AS k JOIN credentials AS c ON c.credential_id = k.credential_id
WHERE k.key_id = :key_id;

-- name: drop_unused_keys
-- Made by an agent that has lost them since. Never the one that asks.
DELETE FROM agent_keys
WHERE credential_id = :credential_id AND used_at IS NULL AND key_id <> :signed_by;

-- name: begin_key
UPDATE agent_keys SET used_at = :now WHERE key_id = :key_id AND used_at IS NULL;

-- name: end_older_keys
UPDATE agent_keys SET ends_at = coalesce(min(ends_at, :ends_at), :ends_at)
WHERE credential_id = :credential_id
  AND seq < (SELECT k.seq FROM agent_keys AS k WHERE k.key_id = :key_id);

-- name: drop_ended_keys
DELETE FROM agent_keys WHERE credential_id = :credential_id AND ends_at <= :now;

-- name: count_revocation
UPDATE revocations SET number = number + 1 WHERE id = 1;

-- name: revocations
SELECT r.number FROM revocations AS r WHERE r.id = 1;
