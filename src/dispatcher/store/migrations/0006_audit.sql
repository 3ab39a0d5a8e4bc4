-- Who did what, when, from where. Two rows for each call that changes something: BEGUN before it is carried out, ENDED
-- with its status after it. One that has only BEGUN was cut off by a crash: what it asked for may have happened.
-- Names, not uids: a record outlives what it tells of.
CREATE TABLE audit (
    time        timestamptz NOT NULL,
    audit_id    uuid NOT NULL,
    phase       text NOT NULL CHECK (phase IN ('BEGUN', 'ENDED')),
    tenant      text NOT NULL,          -- empty: the deployment
    principal   text NOT NULL,
    auth_mode   text NOT NULL,
    method      text NOT NULL,
    resource    text NOT NULL,
    peer        text NOT NULL,
    request_id  text NOT NULL,
    trace_id    text NOT NULL,
    status      text NOT NULL,          -- empty in BEGUN
    PRIMARY KEY (time, audit_id, phase)
) PARTITION BY RANGE (time);
CREATE INDEX audit_tenant ON audit (tenant, time);

-- Append-only: a record is neither changed nor taken away by itself; retention drops whole days.
CREATE FUNCTION audit_refuses_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'audit is append-only' USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE ON audit
    FOR EACH ROW EXECUTE FUNCTION audit_refuses_change();
CREATE TRIGGER audit_no_truncate BEFORE TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION audit_refuses_change();
