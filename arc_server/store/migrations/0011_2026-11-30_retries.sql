-- Which command a command runs again. NULL: none.
ALTER TABLE commands ADD COLUMN retry_of TEXT;
