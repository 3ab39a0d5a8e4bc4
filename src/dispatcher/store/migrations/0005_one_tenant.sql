-- publish_one(): publish() for a batch of one tenant, whose id each statement names: the form for Citus, which keeps the
-- rows of a tenant on one worker. What publish() learns from xmin, a worker's, this one learns from RETURNING. Where it
-- says nothing else the steps, verdicts and reasons are those of publish().
CREATE FUNCTION publish_one(
    p_lock_timeout_ms  integer,
    p_chains           integer[], -- a request's chain, 0 for none: one refused refuses those behind it
    p_tenant_id        uuid,
    p_version          uuid,      -- the routing version that the fan-out below was computed with
    p_event_request    integer[], -- an event's request, from 1
    p_event_id         text[],
    p_digest           bytea[],   -- NULL where the caller gave no id
    p_endpoint_count   integer[],
    p_type             text[],
    p_ordering_key     text[],
    p_content_type     text[],
    p_data             bytea[],
    p_attributes       jsonb[],
    p_source           text[],
    p_subject          text[],
    p_event_time       timestamptz[],
    p_traceparent      text[],
    p_target_endpoint  uuid[],    -- distinct, in their order
    p_row_event        integer[], -- outbox rows in publish order: index of the event …
    p_row_target       integer[], -- … and of the endpoint
    OUT verdicts        smallint[],
    OUT duplicates      boolean[],
    OUT endpoint_counts integer[],
    OUT bases           bigint[],
    OUT revisions       integer[],
    OUT published_at    timestamptz
) LANGUAGE plpgsql VOLATILE
-- A plan chosen while the tables were empty must not stay a sequential scan for ever.
SET enable_seqscan = off
SET plan_cache_mode = force_generic_plan
AS $$
#variable_conflict use_column
DECLARE
    v_generation integer;
    v_claims     boolean;
    v_claim      record;
    v_own_ids    text[] := '{}';       -- the claims that are ours, one for each generation
    v_own_generations integer[] := '{}';
    v_event_verdicts integer[];
    v_day        timestamptz;
    v_oldest     timestamptz;
    v_last_time  timestamptz;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'publish_one() needs READ COMMITTED: sequences repeat under a snapshot older than the lock'
            USING ERRCODE = 'invalid_transaction_state',
                  HINT = 'ALTER ROLE … SET default_transaction_isolation = ''read committed''';
    END IF;
    IF current_setting('synchronous_commit') = 'off' THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
    -- With it a lost reply is settled by pg_xact_status. Where a worker commits, the coordinator's id tells nothing: such
    -- a reply stays unknown.
    IF NOT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') THEN
        RAISE INFO 'dispatcher.xid %', pg_current_xact_id();
    END IF;
    PERFORM set_config('lock_timeout', p_lock_timeout_ms || 'ms', true);

    verdicts := array_fill(0::smallint, ARRAY[cardinality(p_chains)]);
    duplicates := array_fill(false, ARRAY[cardinality(p_event_id)]);
    endpoint_counts := p_endpoint_count;
    v_claims := EXISTS (SELECT FROM unnest(p_digest) d WHERE d IS NOT NULL);

    -- 1. Claim the callers' ids in this generation and the next.
    IF v_claims THEN
        SELECT floor(extract(epoch FROM clock_timestamp()) / dedup_window_s)::integer INTO STRICT v_generation
        FROM deployment;
        FOR v_claim IN
            INSERT INTO dedup (tenant_id, event_id, generation, digest, endpoint_count)
            SELECT p_tenant_id, e.event_id, g.generation, e.digest, e.endpoint_count
            FROM unnest(p_event_id, p_digest, p_endpoint_count) e(event_id, digest, endpoint_count)
            CROSS JOIN (VALUES (v_generation), (v_generation + 1)) g(generation)
            WHERE e.digest IS NOT NULL
            ORDER BY 2, 3
            ON CONFLICT DO NOTHING
            RETURNING event_id, generation
        LOOP
            v_own_ids := v_own_ids || v_claim.event_id;
            v_own_generations := v_own_generations || v_claim.generation;
        END LOOP;
        SELECT array_agg(e.digest IS NOT NULL AND won.event_id IS NULL ORDER BY e.i) INTO duplicates
        FROM unnest(p_event_id, p_digest) WITH ORDINALITY e(event_id, digest, i)
        LEFT JOIN (
            SELECT o.event_id FROM unnest(v_own_ids) o(event_id) GROUP BY o.event_id HAVING count(*) = 2
        ) won ON won.event_id = e.event_id;

        IF true = ANY (duplicates) THEN
            -- A new statement sees what the claim waited for. Our own half of a claim is no witness. A first claim that
            -- is not to be found leaves the request for another try.
            SELECT array_agg(coalesce(d.endpoint_count, e.endpoint_count) ORDER BY e.i),
                   array_agg(CASE WHEN NOT duplicates[e.i] THEN 0 WHEN d.digest IS NULL THEN 1
                                  WHEN d.digest <> e.digest THEN 2 ELSE 0 END ORDER BY e.i)
            INTO endpoint_counts, v_event_verdicts
            FROM unnest(p_event_id, p_digest, p_endpoint_count) WITH ORDINALITY e(event_id, digest, endpoint_count, i)
            LEFT JOIN LATERAL (
                SELECT d.digest, d.endpoint_count FROM dedup d
                WHERE duplicates[e.i] AND d.tenant_id = p_tenant_id AND d.event_id = e.event_id
                  AND d.generation IN (v_generation, v_generation + 1)
                  AND (d.event_id, d.generation) NOT IN (SELECT * FROM unnest(v_own_ids, v_own_generations))
                ORDER BY d.generation LIMIT 1
            ) d ON true;
            SELECT array_agg(r.verdict ORDER BY r.request) INTO verdicts
            FROM (SELECT e.request, max(e.verdict)::smallint AS verdict
                  FROM unnest(p_event_request, v_event_verdicts) e(request, verdict) GROUP BY e.request) r;
        END IF;
    END IF;

    -- 2. Routing: a tenant whose endpoints changed, or that is gone, is left out whole.
    IF NOT EXISTS (
        SELECT FROM tenant x WHERE x.tenant_id = p_tenant_id AND x.routing_version = p_version AND x.delete_time IS NULL
    ) THEN
        SELECT array_agg(greatest(v.verdict, 1::smallint) ORDER BY v.i) INTO verdicts
        FROM unnest(verdicts) WITH ORDINALITY v(verdict, i);
    END IF;

    -- 3. Lock the endpoints in primary-key order; the revision is the locked row's, so it never falls behind.
    WITH locked AS (
        SELECT e.endpoint_id, e.revision
        FROM endpoint e
        WHERE e.tenant_id = p_tenant_id AND e.endpoint_id = ANY (p_target_endpoint) AND e.delete_time IS NULL
        ORDER BY e.endpoint_id
        FOR NO KEY UPDATE
    )
    SELECT array_agg(l.revision ORDER BY t.i) INTO revisions
    FROM unnest(p_target_endpoint) WITH ORDINALITY t(endpoint_id, i)
    LEFT JOIN locked l ON l.endpoint_id = t.endpoint_id;

    IF array_position(revisions, NULL) IS NOT NULL THEN
        SELECT array_agg(greatest(v.verdict, 1::smallint) ORDER BY v.i) INTO verdicts
        FROM unnest(verdicts) WITH ORDINALITY v(verdict, i);
    END IF;

    IF NOT (0::smallint = ALL (verdicts)) AND NOT (0 = ALL (p_chains)) THEN
        SELECT array_agg(CASE WHEN r.verdict = 0 AND r.chain > 0 AND r.broken THEN 3::smallint ELSE r.verdict END ORDER BY r.i)
        INTO verdicts
        FROM (SELECT v.verdict, v.chain, v.i,
                     bool_or(v.verdict <> 0) OVER (PARTITION BY v.chain ORDER BY v.i) AS broken
              FROM unnest(verdicts, p_chains) WITH ORDINALITY v(verdict, chain, i)) r;
    END IF;

    -- A refused request leaves nothing behind, its claims included.
    IF v_claims AND NOT (0::smallint = ALL (verdicts)) THEN
        DELETE FROM dedup d
        WHERE d.tenant_id = p_tenant_id AND (d.event_id, d.generation) IN (
            SELECT o.event_id, o.generation
            FROM unnest(v_own_ids, v_own_generations) o(event_id, generation)
            JOIN unnest(p_event_request, p_event_id) e(request, event_id) ON e.event_id = o.event_id
            WHERE verdicts[e.request] <> 0);
    END IF;

    -- 4. The highest sequence: the newest partition first, older days only for those not found, at last the cursor.
    -- Rows above a cursor are not older than it, so its day bounds the search.
    v_day := date_trunc('day', clock_timestamp(), 'UTC');
    SELECT array_agg(o.seq ORDER BY t.i), max(o.time) INTO bases, v_last_time
    FROM unnest(p_target_endpoint) WITH ORDINALITY t(endpoint_id, i)
    LEFT JOIN LATERAL (
        SELECT o.seq, o.time FROM outbox o
        WHERE o.tenant_id = p_tenant_id AND o.endpoint_id = t.endpoint_id AND o.time >= v_day
        ORDER BY o.seq DESC LIMIT 1
    ) o ON true;
    WHILE array_position(bases, NULL) IS NOT NULL LOOP
        -- Settle from the cursor all whose cursor is not older than the day just searched.
        SELECT array_agg(CASE WHEN b.seq IS NULL AND c.time >= v_day THEN c.seq ELSE b.seq END ORDER BY b.i),
               min(c.time) FILTER (WHERE b.seq IS NULL AND c.time < v_day),
               greatest(v_last_time, max(c.time) FILTER (WHERE b.seq IS NULL AND c.time >= v_day))
        INTO bases, v_oldest, v_last_time
        FROM unnest(p_target_endpoint, bases) WITH ORDINALITY b(endpoint_id, seq, i)
        LEFT JOIN cursor c ON b.seq IS NULL AND c.tenant_id = p_tenant_id AND c.endpoint_id = b.endpoint_id;
        EXIT WHEN v_oldest IS NULL;
        v_day := v_day - interval '1 day';
        SELECT array_agg(coalesce(b.seq, o.seq) ORDER BY b.i), greatest(v_last_time, max(o.time))
        INTO bases, v_last_time
        FROM unnest(p_target_endpoint, bases) WITH ORDINALITY b(endpoint_id, seq, i)
        LEFT JOIN LATERAL (
            SELECT o.seq, o.time FROM outbox o
            WHERE b.seq IS NULL AND o.tenant_id = p_tenant_id AND o.endpoint_id = b.endpoint_id
              AND o.time >= v_day AND o.time < v_day + interval '1 day'
            ORDER BY o.seq DESC LIMIT 1
        ) o ON true;
    END LOOP;

    -- 5. The partition time is read after the locks and is never below an endpoint's previous row.
    published_at := greatest(clock_timestamp(), v_last_time);

    INSERT INTO event (tenant_id, event_id, time, type, ordering_key, content_type, data, attributes, source, subject,
                       event_time, traceparent, ordinal)
    SELECT p_tenant_id, e.event_id, published_at, e.type, e.ordering_key, e.content_type, e.data, e.attributes,
           e.source, e.subject, e.event_time, e.traceparent, e.i
    FROM unnest(p_event_request, p_event_id, p_type, p_ordering_key, p_content_type, p_data, p_attributes,
                p_source, p_subject, p_event_time, p_traceparent, duplicates) WITH ORDINALITY
         e(request, event_id, type, ordering_key, content_type, data, attributes, source, subject, event_time,
           traceparent, duplicate, i)
    WHERE NOT e.duplicate AND verdicts[e.request] = 0;

    INSERT INTO outbox (tenant_id, endpoint_id, seq, time, event_id, event_time, type, ordering_key, revision, data_bytes)
    SELECT p_tenant_id, t.endpoint_id,
           t.base + row_number() OVER (PARTITION BY r.target ORDER BY r.i),
           published_at, e.event_id, published_at, e.type, e.ordering_key, t.revision, e.data_bytes
    FROM unnest(p_row_event, p_row_target) WITH ORDINALITY r(event, target, i)
    JOIN (
        SELECT e.*, octet_length(e.data) AS data_bytes
        FROM unnest(p_event_request, p_event_id, p_type, p_ordering_key, p_data, duplicates)
             WITH ORDINALITY e(request, event_id, type, ordering_key, data, duplicate, i)
        WHERE NOT e.duplicate AND verdicts[e.request] = 0
    ) e ON e.i = r.event
    JOIN unnest(p_target_endpoint, revisions, bases) WITH ORDINALITY t(endpoint_id, revision, base, i)
      ON t.i = r.target;
END
$$;
