"""A store is filled with many commands by SQL: through the server it would take an hour.

The server has made the schema before, and does not run meanwhile. What is stored looks as the
server would have stored it: bodies with their checksums, an idempotency key for each command.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final
from zlib import crc32

IDLE_TARGET: Final = "idle"
"""The target of what waits; nothing leases for it."""
_INLINE: Final = 1
"""The form of a body that stands in its row (arc_server/store)."""
_FAILED_SHARE: Final = 50
"""One of so many that have ended has failed."""
_CANCELLED_SHARE: Final = 5
"""One of so many that have failed was cancelled."""
SPREAD_SECONDS: Final = 7 * 86_400
"""Over how long the commands were created."""
TAGGED_SHARE: Final = 10
"""One of so many has tags."""
COMMANDS: Final = 40
TARGETS: Final = 200
SENDERS: Final = 20
BATCHES: Final = 1_000
"""The names of commands and targets, the tokens and the values of a tag, over which the commands
are spread."""

_FILL: Final = """
INSERT OR IGNORE INTO deployments (deployment_id, created_at)
  SELECT name, :now FROM temp.names;
INSERT OR IGNORE INTO targets (deployment_id, position, resource_id, resource_type, created_at)
  SELECT name, (SELECT count(*) FROM targets WHERE deployment_id = name), :target, 'daemon', :now
  FROM temp.names;
INSERT OR IGNORE INTO targets (deployment_id, position, resource_id, resource_type, created_at)
  SELECT name, (SELECT count(*) FROM targets WHERE deployment_id = name), :busy, 'daemon', :now
  FROM temp.names;
UPDATE numbering SET high = high + :stored WHERE id = 1;
INSERT INTO commands (
    seq, command_id, deployment_id, target_id, target_type, command, state, attempt, max_attempts,
    created_at, is_push, completed_at, lease_attempt, ready_order, created_by, error_code,
    tags
)
  WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < :stored),
  rows AS (
    SELECT n, n % :deployments AS place, :now - :spread + :spread / :stored * n AS created_at,
      n > :ended AS is_pending FROM numbers
  )
  SELECT :first + n,
    'cmd_' || printf('%011x', created_at / 1000) || substr(lower(hex(randomblob(9))), 1, 17),
    name, CASE WHEN is_pending THEN :target ELSE 'host-' || abs(random() % :targets) END, 'daemon',
    'report-' || abs(random() % :commands),
    CASE WHEN is_pending THEN 'PENDING' WHEN n % :failed = 0 THEN 'FAILED' ELSE 'SUCCEEDED' END,
    1, 5, created_at, 0, CASE WHEN is_pending THEN NULL ELSE created_at + 50000 END,
    CASE WHEN is_pending THEN NULL ELSE 1 END, CASE WHEN is_pending THEN :first + n END,
    'tok_' || abs(random() % :senders),
    CASE WHEN is_pending OR n % :failed THEN NULL
      WHEN n % (:failed * :cancelled) = 0 THEN 'CANCELLED' ELSE 'HANDLER_ERROR' END,
    CASE WHEN n % :tagged = 0 THEN json_object(
      'batch', 'b-' || abs(random() % :batches), 'env', iif(n % 3, 'prod', 'test')) END
  FROM rows JOIN temp.names ON names.place = rows.place ORDER BY n;
INSERT INTO command_tags (key, value, created_at, command)
  SELECT t.key, t.value, c.created_at, c.seq
  FROM commands AS c, json_each(c.tags) AS t WHERE c.seq > :first AND c.tags IS NOT NULL;
INSERT INTO params (command, form, data, size, checksum)
  SELECT seq, :form, :body, :size, :checksum FROM commands WHERE seq > :first ORDER BY seq;
INSERT INTO responses (command, form, data, size, checksum)
  SELECT seq, :form, :body, :size, :checksum FROM commands
  WHERE seq > :first AND state = 'SUCCEEDED' ORDER BY seq;
INSERT INTO idempotency_keys (
    deployment_id, command, key, scope, names_target, params_digest, command_seq, created_at
)
  SELECT deployment_id, command, lower(hex(randomblob(16))), target_id, 1, randomblob(32), seq,
    created_at
  FROM commands WHERE seq > :first ORDER BY seq;
INSERT INTO usage (
    deployment_id, live_commands, stored_bytes, idempotency_keys, succeeded, failed, cancelled
)
  SELECT deployment_id, sum(state = 'PENDING'), sum(:size * (1 + (state = 'SUCCEEDED'))
      + coalesce(length(CAST(tags AS BLOB)), 0)), count(*),
    sum(state = 'SUCCEEDED'), sum(error_code IS 'HANDLER_ERROR'),
    sum(error_code IS 'CANCELLED')
  FROM commands WHERE seq > :first GROUP BY deployment_id
  ON CONFLICT (deployment_id) DO UPDATE
  SET live_commands = live_commands + excluded.live_commands,
    stored_bytes = stored_bytes + excluded.stored_bytes,
    idempotency_keys = idempotency_keys + excluded.idempotency_keys,
    succeeded = succeeded + excluded.succeeded, failed = failed + excluded.failed,
    cancelled = cancelled + excluded.cancelled;
"""


def fill(
    database: Path,
    *,
    stored: int,
    pending: int,
    deployments: int,
    known: str,
    busy_target: str,
    body: bytes,
) -> float:
    """Store commands over so many deployments, one of them `known`; return the seconds taken.

    Each deployment has a `busy_target` too, for which nothing is stored.
    """
    began = time.perf_counter()
    names = [known, *(f"deployment-{number:04}" for number in range(1, deployments))]
    with closing(sqlite3.connect(database, isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")  # on the disk at the end, by the checkpoint's fsync
        db.execute("PRAGMA cache_size = -262144")
        db.execute("CREATE TEMP TABLE names (place INTEGER PRIMARY KEY, name TEXT NOT NULL)")
        db.executemany("INSERT INTO temp.names VALUES (?, ?)", enumerate(names))
        [(first,)] = db.execute("SELECT high FROM numbering WHERE id = 1").fetchall()
        values = {
            "now": time.time_ns() // 1000,
            "spread": SPREAD_SECONDS * 1_000_000,
            "first": first,
            "stored": stored,
            "ended": stored - pending,
            "deployments": deployments,
            "failed": _FAILED_SHARE,
            "cancelled": _CANCELLED_SHARE,
            "commands": COMMANDS,
            "targets": TARGETS,
            "senders": SENDERS,
            "tagged": TAGGED_SHARE,
            "batches": BATCHES,
            "target": IDLE_TARGET,
            "busy": busy_target,
            "form": _INLINE,
            "body": body,
            "size": len(body),
            "checksum": crc32(body, _INLINE + 8 * (len(body) + 1)),
        }
        db.execute("BEGIN IMMEDIATE")
        for statement in _FILL.split(";\n"):
            if statement.strip():
                db.execute(statement, values)
        db.execute("COMMIT")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return time.perf_counter() - began
