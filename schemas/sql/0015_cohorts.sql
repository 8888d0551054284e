-- The fleet by cohorts: what vehicle_day, trips, charges and alarm_episodes add up to, by period, for answers that
-- cost the same for a thousand vehicles and for a million. Made from these tables, and made anew when they change:
-- nothing here is a source. Columns come from schemas/statistics/cohorts.py; a test holds this file against them.
-- Periods are local days (D), ISO weeks (W), months (M) and years (Y) of the fleet's time zone; start is the first day.

-- Distinct combinations of what the registry knows of a vehicle.
CREATE TABLE cohort_facts (
    facts_id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    model            text COLLATE "C" NOT NULL,
    fleet            text COLLATE "C" NOT NULL,
    region           text COLLATE "C" NOT NULL,
    usage            text COLLATE "C" NOT NULL,
    battery_supplier text COLLATE "C" NOT NULL,
    chemistry        text COLLATE "C" NOT NULL,
    UNIQUE (model, fleet, region, usage, battery_supplier, chemistry)
);

-- Each vehicle's combination, and what else its days are worked out with, as last looked up.
CREATE TABLE vehicle_groups (
    vehicle_id bigint PRIMARY KEY,
    facts_id   integer NOT NULL,
    edition    smallint NOT NULL,  -- of its newest report: 0 unknown, 1 2016, 2 2025, 3 none (JSON samples)
    joined_on  date,               -- registered or first seen
    first_day  date,               -- first day with data, which may lie before
    retired_on date,
    periodic   boolean NOT NULL,
    battery_kwh double precision,
    battery_ah  double precision,
    certified_kwh_per_100km double precision,
    cells      integer,
    probes     integer
) WITH (fillfactor = 80);

-- A cohort is a combination and an edition of the standard: cohort_id = facts_id * 4 + edition.
CREATE VIEW cohorts AS
SELECT f.facts_id * 4 + e.code AS cohort_id, f.model, f.fleet, f.region, f.usage, f.battery_supplier, f.chemistry,
       e.edition
FROM cohort_facts f
CROSS JOIN (VALUES (0, 'unknown'), (1, '2016'), (2, '2025'), (3, 'none')) AS e (code, edition);

-- Vehicles that joined and that retired, by period: sums of it say how many were accessed on an evening. Only D, M, Y.
CREATE TABLE cohort_access (
    span      "char" NOT NULL,
    start     date NOT NULL,
    cohort_id integer NOT NULL,
    joined    bigint NOT NULL,
    retired   bigint NOT NULL,
    PRIMARY KEY (span, start, cohort_id)
);

-- A vehicle and a day (D) or a month (M), in a few bytes: for counts of distinct vehicles.
CREATE TABLE vehicle_brief (
    span        "char" NOT NULL,
    start       date NOT NULL,
    vehicle_id  bigint NOT NULL,
    cohort_id   integer NOT NULL,  -- on that day; on the month's last day with data
    flags       integer NOT NULL,  -- schemas/statistics/cohorts.py
    charges     integer NOT NULL,
    distance_km double precision NOT NULL,
    cycles      double precision,  -- NULL: rated capacity not known
    PRIMARY KEY (span, start, vehicle_id)
);

CREATE TABLE cohort_period (
    span      "char" NOT NULL,
    start     date NOT NULL,
    cohort_id integer NOT NULL,
    vehicle_days bigint NOT NULL DEFAULT 0,
    online_days bigint NOT NULL DEFAULT 0,
    moved_days bigint NOT NULL DEFAULT 0,
    on_change_days bigint NOT NULL DEFAULT 0,
    records bigint NOT NULL DEFAULT 0,
    rows bigint NOT NULL DEFAULT 0,
    reissued bigint NOT NULL DEFAULT 0,
    repeated bigint NOT NULL DEFAULT 0,
    late bigint NOT NULL DEFAULT 0,
    duplicates bigint NOT NULL DEFAULT 0,
    conflicts bigint NOT NULL DEFAULT 0,
    periodic_records bigint NOT NULL DEFAULT 0,
    expected double precision NOT NULL DEFAULT 0,
    missing_s double precision NOT NULL DEFAULT 0,
    covered_s double precision NOT NULL DEFAULT 0,
    gap_s double precision NOT NULL DEFAULT 0,
    distance_km double precision NOT NULL DEFAULT 0,
    untracked_km double precision NOT NULL DEFAULT 0,
    driving_s double precision NOT NULL DEFAULT 0,
    charging_s double precision NOT NULL DEFAULT 0,
    parked_s double precision NOT NULL DEFAULT 0,
    consumption_km double precision NOT NULL DEFAULT 0,
    consumption_kwh double precision NOT NULL DEFAULT 0,
    out_kwh double precision NOT NULL DEFAULT 0,
    regen_kwh double precision NOT NULL DEFAULT 0,
    standing_kwh double precision NOT NULL DEFAULT 0,
    standing_s double precision NOT NULL DEFAULT 0,
    standing_soc_pct double precision NOT NULL DEFAULT 0,
    standing_span_s double precision NOT NULL DEFAULT 0,
    charge_kwh double precision NOT NULL DEFAULT 0,
    certified_used_kwh double precision NOT NULL DEFAULT 0,
    certified_kwh double precision NOT NULL DEFAULT 0,
    cycles double precision NOT NULL DEFAULT 0,
    insulation_days bigint NOT NULL DEFAULT 0,
    insulation_fault_days bigint NOT NULL DEFAULT 0,
    insulation_warning_days bigint NOT NULL DEFAULT 0,
    trips bigint NOT NULL DEFAULT 0,
    trips_measured bigint NOT NULL DEFAULT 0,
    trip_km double precision NOT NULL DEFAULT 0,
    trip_s double precision NOT NULL DEFAULT 0,
    trip_measured_s double precision NOT NULL DEFAULT 0,
    trip_moving_s double precision NOT NULL DEFAULT 0,
    charges bigint NOT NULL DEFAULT 0,
    charge_s double precision NOT NULL DEFAULT 0,
    charges_measured bigint NOT NULL DEFAULT 0,
    session_kwh double precision NOT NULL DEFAULT 0,
    charges_soc bigint NOT NULL DEFAULT 0,
    soc_rise_pct double precision NOT NULL DEFAULT 0,
    fast_charges bigint NOT NULL DEFAULT 0,
    slow_charges bigint NOT NULL DEFAULT 0,
    fast_kwh double precision NOT NULL DEFAULT 0,
    slow_kwh double precision NOT NULL DEFAULT 0,
    episodes bigint NOT NULL DEFAULT 0,
    serious_episodes bigint NOT NULL DEFAULT 0,
    vehicles bigint NOT NULL DEFAULT 0,
    online_vehicles bigint NOT NULL DEFAULT 0,
    moved_vehicles bigint NOT NULL DEFAULT 0,
    tripped_vehicles bigint NOT NULL DEFAULT 0,
    charged_vehicles bigint NOT NULL DEFAULT 0,
    active_vehicles bigint NOT NULL DEFAULT 0,
    alarmed_vehicles bigint NOT NULL DEFAULT 0,
    insulation_fault_vehicles bigint NOT NULL DEFAULT 0,
    rated_vehicles bigint NOT NULL DEFAULT 0,
    checked_vehicles bigint NOT NULL DEFAULT 0,
    passed_vehicles bigint NOT NULL DEFAULT 0,
    newest_at timestamptz,
    PRIMARY KEY (span, start, cohort_id)
);

-- Distributions: schemas/statistics/sketch.py says how they are stored.
CREATE TABLE cohort_spread (
    span      "char" NOT NULL,
    start     date NOT NULL,
    spread    smallint NOT NULL,
    cohort_id integer NOT NULL,
    counts    bytea NOT NULL,
    PRIMARY KEY (span, start, spread, cohort_id)
);

-- The same joined for the whole fleet (dimension ''), for each value of one dimension, and of weeks, months and years
-- for each pair of values of two ('model,region'; values with chr(31) between): what is asked most.
CREATE TABLE group_spread (
    span      "char" NOT NULL,
    start     date NOT NULL,
    spread    smallint NOT NULL,
    dimension text COLLATE "C" NOT NULL,
    value     text COLLATE "C" NOT NULL,
    counts    bytea NOT NULL,
    PRIMARY KEY (span, start, spread, dimension, value)
);

-- Where a cohort stands on the evening of a day.
CREATE TABLE cohort_state (
    day       date NOT NULL,
    cohort_id integer NOT NULL,
    seen_7 bigint NOT NULL,
    seen_30 bigint NOT NULL,
    seen_90 bigint NOT NULL,
    frequent_vehicles bigint NOT NULL,
    outlier_vehicles bigint NOT NULL,
    outlier_cells bigint NOT NULL,
    PRIMARY KEY (day, cohort_id)
);

-- Vehicles that failed the weekly verification, and by which checks (bit = position).
CREATE TABLE vehicle_checks (
    week       date NOT NULL,
    vehicle_id bigint NOT NULL,
    cohort_id  integer NOT NULL,
    failed     integer NOT NULL,
    totals     integer[] NOT NULL,
    failures   integer[] NOT NULL,
    cells_seen  integer,           -- most cells and probes that a record listed; NULL: none did
    probes_seen integer,
    PRIMARY KEY (week, vehicle_id)
);

-- Which periods have been made, from which changes: of a day those of statistics_days, of a longer period the sum of
-- the builds of its days. -1: to be made anew.
CREATE TABLE cohort_counted (
    span        "char" NOT NULL,
    start       date NOT NULL,
    changes     bigint NOT NULL,
    builds      bigint NOT NULL,
    computed_at timestamptz NOT NULL,
    newest_at   timestamptz,
    PRIMARY KEY (span, start)
) WITH (fillfactor = 50);

-- What the aggregator has been told: vehicles whose facts have changed, days whose alarms have been handled.
CREATE TABLE cohort_touched (vehicle_id bigint NOT NULL);
CREATE TABLE cohort_handled (day date NOT NULL);

-- For whoever changes what is known of vehicles: their days will be made anew.
CREATE FUNCTION statistics_touch_days(vehicle_ids bigint[]) RETURNS void
LANGUAGE sql AS $$ INSERT INTO cohort_touched (vehicle_id) SELECT unnest(vehicle_ids) $$;

CREATE FUNCTION cohort_alarm_handled() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO cohort_handled (day) VALUES (NEW.day);
    RETURN NULL;
END $$;
CREATE TRIGGER cohort_alarm_handled AFTER UPDATE OF acknowledged_at, closed_at ON alarm_episodes
    FOR EACH ROW WHEN (OLD.acknowledged_at IS DISTINCT FROM NEW.acknowledged_at
                       OR OLD.closed_at IS DISTINCT FROM NEW.closed_at)
    EXECUTE FUNCTION cohort_alarm_handled();

-- The bin of a value: schemas/statistics/sketch.py.
CREATE FUNCTION sketch_bin(x double precision) RETURNS integer LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CASE WHEN abs(x) < 0.001 THEN 0 ELSE sign(x)::integer * least(20000,
        greatest(1, ceil(ln(abs(x)) / 0.040005334613699206)::integer + 173)) END
$$;
