-- What handlers take and return (JSON Schema), apart from the rest of a registration: lists of
-- agents are asked for often and need none of it.

ALTER TABLE agents ADD COLUMN schemas BLOB;
