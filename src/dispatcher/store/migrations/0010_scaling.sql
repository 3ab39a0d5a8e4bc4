-- What each instance says of its load with its heartbeat, so that any of them can answer an autoscaler for the fleet.
ALTER TABLE instance
    ADD COLUMN due_backlog bigint NOT NULL DEFAULT 0,
    ADD COLUMN due_age_s double precision NOT NULL DEFAULT 0;
