-- How a key signs, and the public half of one that is asymmetric (32 bytes of Ed25519).
ALTER TABLE signing_key
    ADD COLUMN algorithm text NOT NULL DEFAULT 'HMAC_SHA256',
    ADD COLUMN public_key bytea;
