-- Which signals are not what they should be: counted by day, vehicle, signal and state.

-- Thresholds of schemas/checks.py (RATES), written by the program that migrated last.
CREATE TABLE rate_limits (
    signal      text COLLATE "C" PRIMARY KEY,
    rises_per_s double precision NOT NULL,
    falls_per_s double precision NOT NULL,
    slack       double precision NOT NULL,
    gap_max_s   integer NOT NULL,
    above       double precision,
    source      text NOT NULL
);

-- Values that moved faster than they can, against the vehicle's report before: the one before in collection time
-- among those that carry the signal, on the same UTC day. NULL for vehicle: all. It looks at what is stored, so the
-- answer is the same in whatever order reports came; a late one can settle, or unsettle, the one after it.
CREATE FUNCTION rate_flaws(vehicle bigint, since timestamptz, until timestamptz) RETURNS TABLE (
    vehicle_id bigint, "time" timestamptz, kind smallint, part smallint, signal text,
    previous_time timestamptz, previous_value double precision, value double precision
)
LANGUAGE sql STABLE AS $$
    SELECT s.vehicle_id, s.time, s.kind, s.part, s.signal, s.previous_time, s.previous_value, s.value
    FROM (
        SELECT t.vehicle_id, t.time, t.kind, t.part, v.signal, v.value,
               lag(t.time) OVER before AS previous_time, lag(v.value) OVER before AS previous_value
        FROM telemetry t
        CROSS JOIN LATERAL (VALUES
            ('speed_kmh', t.speed_kmh::double precision), ('odometer_km', t.odometer_km),
            ('soc_pct', t.soc_pct), ('total_voltage_v', t.total_voltage_v),
            ('max_temp_c', t.max_temp_c), ('min_temp_c', t.min_temp_c),
            ('probe_max_c', t.probe_max_c), ('probe_min_c', t.probe_min_c),
            ('motor_temp_c', t.motor_temp_c), ('motor_controller_temp_c', t.motor_controller_temp_c)
        ) AS v (signal, value)
        WHERE (vehicle IS NULL OR t.vehicle_id = vehicle) AND t.time >= since AND t.time < until AND v.value IS NOT NULL
        WINDOW before AS (
            PARTITION BY t.vehicle_id, v.signal, (t.time AT TIME ZONE 'UTC')::date ORDER BY t.time, t.kind, t.part
        )
    ) s
    JOIN rate_limits l USING (signal)
    CROSS JOIN LATERAL (SELECT extract(epoch FROM s.time - s.previous_time)::double precision) AS gap (s)
    WHERE gap.s > 0 AND gap.s <= l.gap_max_s
      AND (l.above IS NULL OR (s.value > l.above AND s.previous_value > l.above))
      -- half a thousandth: 0.1 km steps in binary must not decide
      AND (s.value - s.previous_value > l.rises_per_s * gap.s + l.slack + 0.0005
           OR s.previous_value - s.value > l.falls_per_s * gap.s + l.slack + 0.0005)
$$;

-- How often the rows of a UTC day have changed: added to in the transaction that changes them, one line per journal
-- partition, so that pipelines do not wait for each other (-1: a replay). What is counted with the sum of today's
-- lines is right until the sum is another.
CREATE TABLE telemetry_days (
    day       date NOT NULL,
    partition integer NOT NULL,
    changes   bigint NOT NULL,
    PRIMARY KEY (day, partition)
) WITH (fillfactor = 50);

-- Days that are there already are counted like any that changed.
INSERT INTO telemetry_days (day, partition, changes)
SELECT to_date(right(c.relname, 8), 'YYYYMMDD'), -1, 1
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'telemetry'::regclass AND c.relname ~ '^telemetry_[0-9]{8}$';

CREATE TABLE signal_flaws (
    day        date NOT NULL,
    vehicle_id bigint NOT NULL,
    signal     text COLLATE "C" NOT NULL,  -- of the catalogue, or of a signals file (telemetry.extra)
    state      text COLLATE "C" NOT NULL,  -- abnormal, invalid, out_of_range, suspect; rate: moved faster than it can
    count      bigint NOT NULL,
    PRIMARY KEY (day, vehicle_id, signal, state)
);

-- Days that have been counted, and at which sum of telemetry_days.changes.
CREATE TABLE signal_flaw_days (
    day        date PRIMARY KEY,
    changes    bigint NOT NULL,
    reports    bigint NOT NULL,
    counted_at timestamptz NOT NULL DEFAULT now()
);

-- The counts of a day as its rows are now.
CREATE FUNCTION count_signal_flaws(counted date) RETURNS TABLE (vehicle_id bigint, signal text, state text, count bigint)
LANGUAGE sql STABLE AS $$
    WITH flawed AS MATERIALIZED (
        SELECT t.vehicle_id, t.flaws, t.extra -> '_flaws' AS own FROM telemetry t
        WHERE t.time >= counted::timestamp AT TIME ZONE 'UTC' AND t.time < (counted + 1)::timestamp AT TIME ZONE 'UTC'
          AND (t.flaws IS NOT NULL OR t.extra ? '_flaws')
    ), pairs AS MATERIALIZED (
        -- rows of a vehicle are alike: each combination is taken apart once
        SELECT f.vehicle_id, f.flaws, count(*) AS n FROM flawed f WHERE f.flaws IS NOT NULL GROUP BY 1, 2
    )
    SELECT p.vehicle_id, s.name,
           (ARRAY['abnormal', 'invalid', 'out_of_range', 'suspect'])[get_byte(p.flaws, 2 * i + 1) - 1], sum(p.n)::bigint
    FROM pairs p CROSS JOIN LATERAL generate_series(0, length(p.flaws) / 2 - 1) AS i
    JOIN signals s ON s.position = get_byte(p.flaws, 2 * i)
    GROUP BY 1, 2, 3
    UNION ALL
    SELECT f.vehicle_id, o.key, o.value, count(*) FROM flawed f CROSS JOIN LATERAL jsonb_each_text(f.own) AS o
    -- a vehicle may publish a field of this name itself
    WHERE jsonb_typeof(f.own) = 'object' AND o.value IN ('abnormal', 'invalid', 'out_of_range', 'suspect')
    GROUP BY 1, 2, 3
    UNION ALL
    SELECT r.vehicle_id, r.signal, 'rate', count(*)
    FROM rate_flaws(NULL, counted::timestamp AT TIME ZONE 'UTC', (counted + 1)::timestamp AT TIME ZONE 'UTC') r
    GROUP BY 1, 2
$$;
