-- Log lines and progress of running commands.

-- name: event_stream
SELECT s.lease_id, s.last_number, s.last_place, s.dropped, s.unsent, s.progress, s.bytes
FROM event_streams AS s WHERE s.command = :seq;

-- name: put_event_stream
INSERT INTO event_streams (
    command, lease_id, last_number, last_place, dropped, unsent, progress, bytes
) VALUES (:seq, :lease_id, :last_number, :last_place, :dropped, :unsent, :progress, :bytes)
ON CONFLICT (command) DO UPDATE
SET lease_id = excluded.lease_id, last_number = excluded.last_number,
    last_place = excluded.last_place, dropped = excluded.dropped, unsent = excluded.unsent,
    progress = excluded.progress, bytes = excluded.bytes;

-- name: insert_event_line
INSERT INTO event_lines (command, place, attempt, at, level, message)
VALUES (:seq, :place, :attempt, :at, :level, :message);

-- name: drop_event_lines
DELETE FROM event_lines WHERE command = :seq AND place <= :until
RETURNING length(CAST(message AS BLOB));

-- name: event_lines
SELECT l.place, l.attempt, l.at, l.level, l.message
FROM event_lines AS l WHERE l.command = :seq AND l.place > :after
ORDER BY l.place LIMIT :limit;

-- name: first_event_line
SELECT l.place FROM event_lines AS l WHERE l.command = :seq ORDER BY l.place LIMIT 1;
