-- What holders say while they run a command.
--
-- `place` counts up over all attempts. A stream knows the lease that writes it and that lease's last
-- number, so that lines sent again are not recorded again.

CREATE TABLE event_streams (
    command     INTEGER PRIMARY KEY REFERENCES commands (seq) ON DELETE CASCADE,
    lease_id    TEXT    NOT NULL,
    last_number INTEGER NOT NULL,
    last_place  INTEGER NOT NULL,
    dropped     INTEGER NOT NULL,   -- lines that holders of earlier leases had no room for
    unsent      INTEGER NOT NULL,   -- the same, of this lease
    progress    BLOB                -- JSON
) STRICT;

CREATE TABLE event_lines (
    command INTEGER NOT NULL REFERENCES event_streams (command) ON DELETE CASCADE,
    place   INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    level   TEXT    NOT NULL,
    message TEXT    NOT NULL,
    PRIMARY KEY (command, place)
) STRICT, WITHOUT ROWID;
