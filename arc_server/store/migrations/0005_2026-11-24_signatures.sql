-- What a sender signed, as it came; NULL for most commands. Replacing params leaves it as it is: who
-- runs the command judges whether the two still belong together.
ALTER TABLE params ADD COLUMN signature BLOB;
