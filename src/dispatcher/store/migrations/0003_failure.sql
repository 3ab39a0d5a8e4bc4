-- What failure needs: policies, halts, parked deliveries, health, replays, operational events. Only expands: every new
-- column has a default that the previous release need not know.

-- settings holds what the tenant says of retries and its publish quota (store/settings_json.py). The resume
-- columns: rows not younger than resume_time go out at resume_rate per second and endpoint.
ALTER TABLE tenant
    ADD COLUMN settings     jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN state        text NOT NULL DEFAULT 'ACTIVE',
    ADD COLUMN state_reason text NOT NULL DEFAULT '',
    ADD COLUMN resume_rate  double precision,
    ADD COLUMN resume_time  timestamptz;
-- Owners look for tenants that changed, since they pause all of their endpoints.
CREATE INDEX tenant_update_time ON tenant (update_time);
ALTER TABLE endpoint
    ADD COLUMN resume_rate  double precision,
    ADD COLUMN resume_time  timestamptz;

-- NULL is the endpoint's URL, n its n-th fallback URL.
ALTER TABLE attempt ADD COLUMN url_index smallint;
-- Failures are few and looked for; successes pay nothing for it.
CREATE INDEX attempt_failure ON attempt (tenant_id, endpoint_id, seq, epoch, number, time) WHERE outcome <> 1;

-- The place within its publish call, so that a backfill keeps the order; and of a replay's copy the original's time.
ALTER TABLE event
    ADD COLUMN ordinal     integer NOT NULL DEFAULT 0,
    ADD COLUMN copied_from timestamptz;
-- Backfills read events by time.
CREATE INDEX event_time ON event USING brin (time) WITH (pages_per_range = 32, autosummarize = on);

-- A delivery whose attempts are used up and for which whatever waits behind it waits for an operator. It ends with a
-- command alone: neither a late success nor an expiry of the row removes it, so that nothing is released unheard.
CREATE TABLE halt (
    tenant_id    uuid NOT NULL,
    endpoint_id  uuid NOT NULL,
    seq          bigint NOT NULL,
    event_id     text NOT NULL,
    event_time   timestamptz NOT NULL,
    type         text NOT NULL,
    ordering_key text,
    ordering_mode text NOT NULL,
    reason       text NOT NULL,
    time         timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, endpoint_id, seq)
);

-- Deliveries out of the straight line: they wait for a retry, or behind a failing delivery of their ordering key. The
-- cursor passes over them. Written under the fence; a parked delivery that is settled is deleted some time later.
CREATE TABLE parked (
    tenant_id          uuid NOT NULL,
    endpoint_id        uuid NOT NULL,
    seq                bigint NOT NULL,
    time               timestamptz NOT NULL,
    event_id           text NOT NULL,
    event_time         timestamptz NOT NULL,
    type               text NOT NULL,
    ordering_key       text,
    ordering_mode      text NOT NULL,
    revision           integer NOT NULL,
    data_bytes         integer NOT NULL,
    replay_of          bigint,
    attempts           integer NOT NULL,
    first_attempt_time timestamptz,
    due_time           timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, endpoint_id, seq)
);
-- The first of each ordering key, and the next of one; no key is ''.
CREATE INDEX parked_key ON parked (tenant_id, endpoint_id, coalesce(ordering_key, ''), seq);
CREATE INDEX parked_time ON parked (time);

-- How an endpoint fares, written lazily by its owner while it fares ill; no row means well.
CREATE TABLE endpoint_health (
    tenant_id       uuid NOT NULL,
    endpoint_id     uuid NOT NULL,
    epoch           bigint NOT NULL,
    failing_since   timestamptz,
    exhausted_heads integer NOT NULL,
    -- An array of {"url_index", "state", "since", "probe_time"}: the circuits that are not closed.
    circuits        jsonb NOT NULL,
    throttle_per_s  double precision,
    -- What subscribers were told and not yet taken back: DISABLED, HALTED, or NULL.
    trouble         text,
    update_time     timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, endpoint_id)
);

-- The dead letter's later life: OPEN until redriven or discarded. own_data: the payload where the event id, forgotten
-- by the deduplication, had been used before for another one that is still kept.
ALTER TABLE dead_letter
    ADD COLUMN own_data     bytea,
    ADD COLUMN state        text NOT NULL DEFAULT 'OPEN',
    ADD COLUMN close_time   timestamptz,
    ADD COLUMN close_reason text,
    ADD COLUMN close_actor  text,
    ADD COLUMN redrive_seq  bigint;
CREATE INDEX dead_letter_closed ON dead_letter (close_time) WHERE state <> 'OPEN';
CREATE INDEX dead_letter_event ON dead_letter (tenant_id, event_id);

-- Long operations that append deliveries, executed by the owner of the target endpoint's partition. arguments says
-- what (store/replays.py); position is where to go on, moved in the transaction that appends.
CREATE TABLE replay (
    tenant_id      uuid NOT NULL,
    replay_id      uuid NOT NULL,
    name           text NOT NULL,
    endpoint_id    uuid NOT NULL,
    partition      smallint NOT NULL,
    kind           text NOT NULL,
    arguments      jsonb NOT NULL,
    rate_per_s     double precision NOT NULL,
    state          text NOT NULL,
    position       jsonb NOT NULL,
    matched_count  bigint NOT NULL,
    appended_count bigint NOT NULL,
    error          text NOT NULL,
    actor          text NOT NULL,
    create_time    timestamptz NOT NULL,
    update_time    timestamptz NOT NULL,
    complete_time  timestamptz,
    PRIMARY KEY (tenant_id, replay_id)
);
CREATE UNIQUE INDEX replay_name ON replay (tenant_id, name);
CREATE INDEX replay_running ON replay (partition, replay_id) WHERE state = 'RUNNING';

-- What is to be published as an event of the service's own (type dispatcher.*): written with its cause, in the same
-- transaction where there is one, and deleted once published. event_id makes the publication idempotent.
CREATE TABLE operational_event (
    tenant_id   uuid NOT NULL,
    event_id    text NOT NULL,
    endpoint_id uuid NOT NULL,
    partition   smallint NOT NULL,
    type        text NOT NULL,
    data        bytea NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, event_id)
);
CREATE INDEX operational_event_partition ON operational_event (partition, create_time);
