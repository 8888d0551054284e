-- Alarms as people use them: who acknowledged and closed an episode, what was told of it and to whom.
-- alarm_episodes is written by the statistics worker (sources 1 and 2) and by the offline rule (source 3).

ALTER TABLE alarm_episodes
    ADD CONSTRAINT alarm_episodes_handled CHECK (closed_at IS NULL OR acknowledged_at IS NOT NULL);
CREATE INDEX alarm_episodes_start ON alarm_episodes (start_at, episode_id);
CREATE INDEX alarm_episodes_unhandled ON alarm_episodes (start_at, episode_id) WHERE closed_at IS NULL;
-- One absence at a time; the offline rule may run twice at once.
CREATE UNIQUE INDEX alarm_episodes_absent ON alarm_episodes (vehicle_id) WHERE source = 3 AND settled_on IS NULL;

-- What people did, and at which level the episode stood then.
CREATE TABLE alarm_actions (
    action_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    episode_id bigint NOT NULL,
    action     text NOT NULL CHECK (action IN ('acknowledge', 'close')),
    acted_at   timestamptz NOT NULL DEFAULT now(),
    acted_by   text NOT NULL,
    note       text,
    level      smallint NOT NULL,
    told       boolean NOT NULL DEFAULT false,  -- an event of alarm_events tells of it
    UNIQUE (episode_id, action)
);

-- Episodes that may have something new to tell, in the transaction that changed them. One line per statement and
-- episode, no lock and no look-up: whoever writes episodes must not wait for those who read about them.
CREATE TABLE alarm_touched (
    number     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    episode_id bigint NOT NULL
);

CREATE FUNCTION alarm_episodes_inserted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO alarm_touched (episode_id) SELECT episode_id FROM fresh ORDER BY episode_id;
    RETURN NULL;
END $$;
CREATE FUNCTION alarm_episodes_updated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO alarm_touched (episode_id)
    SELECT f.episode_id FROM fresh f LEFT JOIN stale s USING (episode_id)
    WHERE (f.level, f.settled_on IS NULL, f.acknowledged_at, f.closed_at)
          IS DISTINCT FROM (s.level, s.settled_on IS NULL, s.acknowledged_at, s.closed_at)
    ORDER BY f.episode_id;
    RETURN NULL;
END $$;
CREATE FUNCTION alarm_episodes_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO alarm_touched (episode_id) SELECT episode_id FROM stale ORDER BY episode_id;
    RETURN NULL;
END $$;
CREATE FUNCTION alarm_episodes_truncated() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO alarm_touched (episode_id) SELECT episode_id FROM alarm_announced WHERE withdrawn_at IS NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER alarm_episodes_inserted AFTER INSERT ON alarm_episodes
    REFERENCING NEW TABLE AS fresh FOR EACH STATEMENT EXECUTE FUNCTION alarm_episodes_inserted();
CREATE TRIGGER alarm_episodes_updated AFTER UPDATE ON alarm_episodes
    REFERENCING NEW TABLE AS fresh OLD TABLE AS stale FOR EACH STATEMENT EXECUTE FUNCTION alarm_episodes_updated();
CREATE TRIGGER alarm_episodes_deleted AFTER DELETE ON alarm_episodes
    REFERENCING OLD TABLE AS stale FOR EACH STATEMENT EXECUTE FUNCTION alarm_episodes_deleted();
CREATE TRIGGER alarm_episodes_truncated AFTER TRUNCATE ON alarm_episodes
    FOR EACH STATEMENT EXECUTE FUNCTION alarm_episodes_truncated();

-- What was last told of each episode: the events are the difference between this and alarm_episodes.
CREATE TABLE alarm_announced (
    episode_id   bigint PRIMARY KEY,
    vehicle_id   bigint NOT NULL,
    source       smallint NOT NULL,
    code         smallint NOT NULL,
    start_at     timestamptz NOT NULL,
    end_at       timestamptz NOT NULL,
    level        smallint NOT NULL,
    over         boolean NOT NULL,
    withdrawn_at timestamptz         -- late data showed that it never was
) WITH (fillfactor = 70);
CREATE INDEX alarm_announced_withdrawn ON alarm_announced (withdrawn_at) WHERE withdrawn_at IS NOT NULL;

-- What is told, in the order in which it is told. Only one process at a time writes here (an advisory lock until
-- its commit), so a reader that has seen an id never finds a lower one later.
CREATE TABLE alarm_events (
    event_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    occurred_at timestamptz NOT NULL,
    event       text NOT NULL CHECK (event IN ('raised', 'changed', 'ended', 'withdrawn', 'acknowledged', 'closed')),
    episode_id  bigint NOT NULL,
    level       smallint NOT NULL,
    body        json NOT NULL        -- the episode as it was then (schemas/alarms.py); json: as it was written
);
CREATE INDEX alarm_events_episode ON alarm_events (episode_id, event_id);
CREATE INDEX alarm_events_occurred ON alarm_events (occurred_at);

-- What goes out to webhooks: made together with the event, by the hooks in the settings of that moment.
CREATE TABLE alarm_deliveries (
    event_id    bigint NOT NULL REFERENCES alarm_events ON DELETE CASCADE,
    hook        text COLLATE "C" NOT NULL,
    episode_id  bigint NOT NULL,
    state       text NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'delivered', 'dead')),
    attempts    integer NOT NULL DEFAULT 0,
    due_at      timestamptz NOT NULL,   -- of the next attempt; while one is under way, when it counts as lost
    created_at  timestamptz NOT NULL,
    finished_at timestamptz,
    status      integer,                -- HTTP status of the last answer
    error       text,                   -- why the last attempt failed
    PRIMARY KEY (event_id, hook)
) WITH (fillfactor = 70);
CREATE INDEX alarm_deliveries_due ON alarm_deliveries (hook, due_at) WHERE state = 'waiting';
CREATE INDEX alarm_deliveries_order ON alarm_deliveries (hook, episode_id, event_id) WHERE state = 'waiting';
CREATE INDEX alarm_deliveries_finished ON alarm_deliveries (hook, finished_at);

-- Since when the offline rule has watched without a pause: before that, silence may have been ours.
CREATE TABLE alarm_watch (
    single         boolean PRIMARY KEY DEFAULT true CHECK (single),
    watching_since timestamptz NOT NULL,
    looked_at      timestamptz NOT NULL
);

-- When an episode that began at start_at is due after so many working days: the same local time of day. Monday to
-- Friday count; public holidays are not known. What begins at a weekend counts from Monday 00:00. Single expressions,
-- which the planner puts in place of the call.
CREATE FUNCTION alarm_close_due_here(here timestamp, days integer) RETURNS timestamp
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT date_trunc('week', here) + CASE WHEN extract(isodow FROM here) >= 6
        THEN make_interval(days => 7 + days / 5 * 7 + days % 5)
        ELSE make_interval(days => (extract(isodow FROM here)::integer - 1 + days) / 5 * 7
                                   + (extract(isodow FROM here)::integer - 1 + days) % 5)
             + (here - date_trunc('day', here))
        END
$$;
CREATE FUNCTION alarm_close_due(start_at timestamptz, days integer, zone text) RETURNS timestamptz
LANGUAGE sql STABLE PARALLEL SAFE AS $$
    SELECT alarm_close_due_here(start_at AT TIME ZONE zone, days) AT TIME ZONE zone
$$;
