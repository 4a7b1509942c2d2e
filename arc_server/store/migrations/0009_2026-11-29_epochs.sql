-- Which time a database lives in. A restore turns the time back and begins another epoch; a start of
-- the server does not. The last row is the epoch of today.

CREATE TABLE epochs (
    number             INTEGER PRIMARY KEY,
    epoch              TEXT    NOT NULL UNIQUE,
    numbers_from       INTEGER NOT NULL,  -- numbers of commands from here on were given out in it
    backed_up_at       INTEGER,           -- when the backup was taken that it goes on from
    began_at           INTEGER,           -- when the first server started in it
    frozen_until       INTEGER,           -- leases of former epochs stay good
    keys_unknown_until INTEGER            -- idempotency keys of unknown age are refused
) STRICT;

INSERT INTO epochs (number, epoch, numbers_from) VALUES (1, lower(hex(randomblob(4))), 0);
