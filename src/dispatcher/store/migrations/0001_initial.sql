-- The data model (docs: ../../../docs/guarantees.md). Insert-only on the hot path; tenant_id leads every primary key;
-- no foreign key, trigger or session state is required. Sizes of enums and meanings of numbers: dispatcher/model.py.

-- What every instance must agree on, whatever its own settings say.
CREATE TABLE deployment (
    singleton      boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    dedup_window_s integer NOT NULL CHECK (dedup_window_s > 0)
);
INSERT INTO deployment (dedup_window_s) VALUES (86400);

CREATE TABLE tenant (
    tenant_id       uuid PRIMARY KEY,
    name            text NOT NULL,
    display_name    text NOT NULL,
    labels          jsonb NOT NULL,
    require_registered_event_types boolean NOT NULL,
    -- Fresh and random at every change of the tenant's endpoints: a counter can repeat after a failover.
    routing_version uuid NOT NULL,
    etag            uuid NOT NULL,
    create_time     timestamptz NOT NULL,
    update_time     timestamptz NOT NULL,
    delete_time     timestamptz
);
CREATE UNIQUE INDEX tenant_name ON tenant (name) WHERE delete_time IS NULL;

CREATE TABLE event_type (
    tenant_id   uuid NOT NULL,
    name        text NOT NULL,
    description text NOT NULL,
    labels      jsonb NOT NULL,
    archived    boolean NOT NULL,
    etag        uuid NOT NULL,
    create_time timestamptz NOT NULL,
    update_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, name)
);

-- A deleted endpoint stays as a tombstone, so that neither its id nor its sequence is ever used again.
CREATE TABLE endpoint (
    tenant_id    uuid NOT NULL,
    endpoint_id  uuid NOT NULL,
    name         text NOT NULL,
    partition    smallint NOT NULL CHECK (partition BETWEEN 0 AND 255),
    description  text NOT NULL,
    labels       jsonb NOT NULL,
    event_types  text[] NOT NULL,
    state        text NOT NULL,
    state_reason text NOT NULL,
    revision     integer NOT NULL,
    settings     jsonb NOT NULL,
    etag         uuid NOT NULL,
    create_time  timestamptz NOT NULL,
    update_time  timestamptz NOT NULL,
    delete_time  timestamptz,
    PRIMARY KEY (tenant_id, endpoint_id)
);
CREATE UNIQUE INDEX endpoint_name ON endpoint (tenant_id, name);
CREATE INDEX endpoint_partition ON endpoint (partition, update_time);

CREATE TABLE endpoint_revision (
    tenant_id   uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    revision    integer NOT NULL,
    settings    jsonb NOT NULL,
    create_time timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, endpoint_id, revision)
);

CREATE TABLE signing_key (
    tenant_id   uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    key_id      text NOT NULL,
    sealed      bytea NOT NULL,
    create_time timestamptz NOT NULL,
    expire_time timestamptz,
    PRIMARY KEY (tenant_id, endpoint_id, key_id)
);

CREATE TABLE event (
    tenant_id    uuid NOT NULL,
    event_id     text NOT NULL,
    time         timestamptz NOT NULL,
    type         text NOT NULL,
    ordering_key text,
    content_type text NOT NULL,
    data         bytea NOT NULL,
    attributes   jsonb,
    source       text,
    subject      text,
    event_time   timestamptz,
    traceparent  text,
    PRIMARY KEY (tenant_id, event_id, time)
) PARTITION BY RANGE (time);

-- The unique key must contain the partition column, so it cannot hold (endpoint, seq) unique across partitions: the
-- row lock on `endpoint` in publish() does.
CREATE TABLE outbox (
    tenant_id    uuid NOT NULL,
    endpoint_id  uuid NOT NULL,
    seq          bigint NOT NULL,
    time         timestamptz NOT NULL,
    event_id     text NOT NULL,
    event_time   timestamptz NOT NULL,
    type         text NOT NULL,
    ordering_key text,
    revision     integer NOT NULL,
    data_bytes   integer NOT NULL,
    replay_of    bigint,
    PRIMARY KEY (tenant_id, endpoint_id, seq, time)
) PARTITION BY RANGE (time);
-- The sweep reads the last seconds of all endpoints; a block range index costs the insert next to nothing. Without
-- autosummarize all pages since the last vacuum would be read.
CREATE INDEX outbox_time ON outbox USING brin (time) WITH (pages_per_range = 32, autosummarize = on);

CREATE TABLE attempt (
    tenant_id        uuid NOT NULL,
    endpoint_id      uuid NOT NULL,
    seq              bigint NOT NULL,
    epoch            bigint NOT NULL,
    number           integer NOT NULL,
    time             timestamptz NOT NULL,
    event_id         text NOT NULL,
    duration_us      bigint NOT NULL,
    outcome          smallint NOT NULL,
    status_code      smallint,
    error            text,
    response_excerpt bytea,
    PRIMARY KEY (tenant_id, endpoint_id, seq, epoch, number, time)
) PARTITION BY RANGE (time);

CREATE TABLE decision (
    tenant_id   uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    seq         bigint NOT NULL,
    kind        smallint NOT NULL,
    event_id    text NOT NULL,
    reason      text NOT NULL,
    actor       text NOT NULL,
    time        timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, endpoint_id, seq)
);

CREATE TABLE dead_letter (
    tenant_id        uuid NOT NULL,
    endpoint_id      uuid NOT NULL,
    seq              bigint NOT NULL,
    event_id         text NOT NULL,
    time             timestamptz NOT NULL,
    type             text NOT NULL,
    ordering_key     text,
    content_type     text NOT NULL,
    attempts         integer NOT NULL,
    last_outcome     smallint,
    last_status_code smallint,
    last_error       text,
    PRIMARY KEY (tenant_id, endpoint_id, seq)
);
CREATE TABLE dead_letter_payload (
    tenant_id uuid NOT NULL,
    event_id  text NOT NULL,
    data      bytea NOT NULL,
    PRIMARY KEY (tenant_id, event_id)
);

-- Everything up to and including seq is settled. Made with the endpoint (seq 0), moved lazily, never back.
CREATE TABLE cursor (
    tenant_id   uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    seq         bigint NOT NULL,
    time        timestamptz NOT NULL,
    PRIMARY KEY (tenant_id, endpoint_id)
) WITH (fillfactor = 70);

-- The unique key on (partition, epoch) makes a change of epoch a key update: it waits for those who hold the row
-- FOR KEY SHARE while they write a decision. A renewal is no key update and does not wait.
CREATE TABLE lease (
    partition   smallint PRIMARY KEY,
    epoch       bigint NOT NULL,
    owner       uuid,
    expire_time timestamptz NOT NULL,
    renewals    bigint NOT NULL,
    UNIQUE (partition, epoch)
) WITH (fillfactor = 50);
INSERT INTO lease (partition, epoch, owner, expire_time, renewals)
SELECT p, 0, NULL, '-infinity', 0 FROM generate_series(0, 255) p;

CREATE TABLE instance (
    instance_id     uuid PRIMARY KEY,
    address         text NOT NULL,
    version         text NOT NULL,
    start_time      timestamptz NOT NULL,
    heartbeat_time  timestamptz NOT NULL,
    draining        boolean NOT NULL,
    in_flight       integer NOT NULL,
    delivered_total bigint NOT NULL
);

CREATE TABLE command (
    tenant_id   uuid NOT NULL,
    command_id  uuid NOT NULL,
    endpoint_id uuid NOT NULL,
    partition   smallint NOT NULL,
    kind        text NOT NULL,
    arguments   jsonb NOT NULL,
    actor       text NOT NULL,
    create_time timestamptz NOT NULL,
    done_time   timestamptz,
    result      jsonb,
    PRIMARY KEY (tenant_id, command_id)
);
CREATE INDEX command_open ON command (partition, create_time) WHERE done_time IS NULL;

-- A claim stands in two generations, so that an id is found whatever side of a rotation its duplicate comes on.
CREATE TABLE dedup (
    tenant_id      uuid NOT NULL,
    event_id       text NOT NULL,
    generation     integer NOT NULL,
    digest         bytea NOT NULL,
    endpoint_count integer NOT NULL,
    PRIMARY KEY (tenant_id, event_id, generation)
) PARTITION BY RANGE (generation);
