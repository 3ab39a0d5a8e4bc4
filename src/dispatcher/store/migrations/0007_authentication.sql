-- How the service proves to an endpoint who it is: what may be shown, and the secrets, sealed. Not by revision: a new
-- password counts for what was published before it, too.
ALTER TABLE endpoint ADD COLUMN authentication jsonb, ADD COLUMN sealed_credentials bytea;
