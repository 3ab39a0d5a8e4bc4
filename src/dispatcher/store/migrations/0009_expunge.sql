-- A payload that was removed on request: the row stays as the record that the event existed.
ALTER TABLE event ADD COLUMN expunge_time timestamptz;
