-- Statistics: a function of what telemetry (and logins) hold, whatever the order it came in.
-- The columns come from schemas/statistics (measures.py, sessions.py); a test holds this file against them.
-- Local days and hours are those of the fleet's time zone (setting time_zone, in settings_fixed).

-- What a transaction has changed in telemetry, for the statistics to catch up with: written by whoever writes
-- telemetry, in the same transaction; deleted once the vehicles' statistics are right again.
CREATE TABLE statistics_changes (
    change_id  bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    share      smallint NOT NULL,   -- vehicle_id % 8: who works on it
    changed_at timestamptz NOT NULL DEFAULT now(),
    urgent     boolean NOT NULL,    -- an alarm, or a value near a limit: visited at once
    vehicles   bytea NOT NULL,      -- vehicle ids, i64 little-endian each; one may come several times
    from_s     bytea NOT NULL,      -- earliest collection second that changed, i64 each, in the same order
    to_s       bytea NOT NULL       -- and the latest; what lies between counts as changed, too
);
CREATE INDEX statistics_changes_share ON statistics_changes (share, change_id);
CREATE INDEX statistics_changes_urgent ON statistics_changes (share) WHERE urgent;

-- Where each vehicle's fold stands: everything up to and with through_at is in state.
CREATE TABLE statistics_checkpoints (
    vehicle_id bigint PRIMARY KEY,
    day        date NOT NULL,         -- local day the state is in
    through_at timestamptz NOT NULL,
    newest_at  timestamptz NOT NULL,  -- newest record that the tables below tell of
    layout     integer NOT NULL,      -- version of the kernels' state
    inverted   boolean NOT NULL,      -- how the current was read
    state      bytea NOT NULL         -- compressed
) WITH (fillfactor = 50);

-- Local days whose statistics have changed: added to in the transaction that changes them.
CREATE TABLE statistics_days (
    day     date PRIMARY KEY,
    changes bigint NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE vehicle_hour (
    vehicle_id bigint NOT NULL,
    hour       timestamptz NOT NULL,  -- its begin
    day        date NOT NULL,         -- local
    records integer,
    rows integer,
    reissued integer,
    repeated integer,
    late integer,
    expected real,
    missing_s real,
    covered_s real,
    gap_s real,
    gap_max_s real,
    cells_listed real,
    probes_listed real,
    distance_km real,
    untracked_km real,
    odometer_falls integer,
    driving_s real,
    charging_s real,
    parked_s real,
    moving_s real,
    speed_max_kmh real,
    consumption_km real,
    consumption_kwh real,
    out_kwh real,
    regen_kwh real,
    standing_kwh real,
    standing_s real,
    standing_soc_pct real,
    standing_span_s real,
    charge_kwh real,
    discharge_ah real,
    charge_ah real,
    regen_ah real,
    power_out_max_kw real,
    power_in_max_kw real,
    soc_first_pct real,
    soc_last_pct real,
    soc_min_pct real,
    soc_max_pct real,
    odometer_first_km real,
    odometer_last_km real,
    trips_dropped integer,
    charges_dropped integer,
    temp_min_c real,
    temp_max_c real,
    temp_spread_max_c real,
    temp_rise_max_c_per_min real,
    cell_min_v real,
    cell_max_v real,
    cell_range_max_mv real,
    cell_rows integer,
    insulation_min_kohm real,
    insulation_min_ohm_per_v real,
    alarm_s real,
    alarm_level_max real,
    PRIMARY KEY (vehicle_id, hour)
) WITH (fillfactor = 90);
CREATE INDEX vehicle_hour_day ON vehicle_hour (day);

CREATE TABLE vehicle_day (
    vehicle_id bigint NOT NULL,
    day        date NOT NULL,         -- local
    records integer,
    rows integer,
    reissued integer,
    repeated integer,
    late integer,
    expected double precision,
    missing_s double precision,
    covered_s double precision,
    gap_s double precision,
    gap_max_s double precision,
    cells_listed double precision,
    probes_listed double precision,
    distance_km double precision,
    untracked_km double precision,
    odometer_falls integer,
    driving_s double precision,
    charging_s double precision,
    parked_s double precision,
    moving_s double precision,
    speed_max_kmh double precision,
    consumption_km double precision,
    consumption_kwh double precision,
    out_kwh double precision,
    regen_kwh double precision,
    standing_kwh double precision,
    standing_s double precision,
    standing_soc_pct double precision,
    standing_span_s double precision,
    charge_kwh double precision,
    discharge_ah double precision,
    charge_ah double precision,
    regen_ah double precision,
    power_out_max_kw double precision,
    power_in_max_kw double precision,
    soc_first_pct double precision,
    soc_last_pct double precision,
    soc_min_pct double precision,
    soc_max_pct double precision,
    odometer_first_km double precision,
    odometer_last_km double precision,
    trips_dropped integer,
    charges_dropped integer,
    temp_min_c double precision,
    temp_max_c double precision,
    temp_spread_max_c double precision,
    temp_rise_max_c_per_min double precision,
    cell_min_v double precision,
    cell_max_v double precision,
    cell_range_max_mv double precision,
    cell_rows integer,
    insulation_min_kohm double precision,
    insulation_min_ohm_per_v double precision,
    alarm_s double precision,
    alarm_level_max double precision,
    nominal_s real,                    -- interval between records that counted as due that day
    interval_s integer[],
    field_valid integer[],
    field_flawed integer[],
    check_total integer[],
    check_failed integer[],
    charging_sign integer[],
    soc_s integer[],
    temp_driving integer[],
    temp_charging integer[],
    spread_driving integer[],
    spread_charging integer[],
    range_rest integer[],
    range_driving integer[],
    range_charge_end integer[],
    flag_s integer[],
    range_rest_p50_mv real,
    range_rest_p95_mv real,
    range_driving_p50_mv real,
    range_driving_p95_mv real,
    range_charge_end_p50_mv real,
    range_charge_end_p95_mv real,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    edition smallint NOT NULL,         -- of the day's last record
    carry bytea,                       -- the kernels' state at the day's end, compressed; NULL for the newest day
    layout integer NOT NULL,
    PRIMARY KEY (vehicle_id, day)
) WITH (fillfactor = 90);
CREATE INDEX vehicle_day_day ON vehicle_day (day, vehicle_id);

CREATE TABLE trips (
    trip_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vehicle_id bigint NOT NULL,
    revision integer NOT NULL DEFAULT 1,
    day date NOT NULL,
    settled_on date,
    start_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL,
    end_cause smallint,
    records integer NOT NULL,
    distance_km double precision,
    untracked_km double precision,
    covered_s double precision,
    moving_s double precision,
    out_kwh double precision,
    regen_kwh double precision,
    consumption_km double precision,
    consumption_kwh double precision,
    start_soc_pct double precision,
    end_soc_pct double precision,
    start_odometer_km double precision,
    end_odometer_km double precision,
    speed_max_kmh double precision,
    start_longitude_deg double precision,
    start_latitude_deg double precision,
    end_longitude_deg double precision,
    end_latitude_deg double precision
);
CREATE INDEX trips_vehicle ON trips (vehicle_id, start_at);
CREATE INDEX trips_day ON trips (day);
CREATE INDEX trips_settled ON trips (vehicle_id, (coalesce(settled_on, 'infinity'::date)));  -- what a swap of days replaces

CREATE TABLE charges (
    charge_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vehicle_id bigint NOT NULL,
    revision integer NOT NULL DEFAULT 1,
    day date NOT NULL,
    settled_on date,
    start_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL,
    end_cause smallint,
    records integer NOT NULL,
    runs integer,
    covered_s double precision,
    energy_kwh double precision,
    charge_ah double precision,
    start_soc_pct double precision,
    end_soc_pct double precision,
    mean_power_kw double precision,
    max_power_kw double precision,
    middle_power_kw double precision,
    middle_coverage double precision,
    mean_temp_c double precision,
    max_temp_c double precision,
    odometer_km double precision,
    longitude_deg double precision,
    latitude_deg double precision,
    capacity_ah double precision
);
CREATE INDEX charges_vehicle ON charges (vehicle_id, start_at);
CREATE INDEX charges_day ON charges (day);
CREATE INDEX charges_settled ON charges (vehicle_id, (coalesce(settled_on, 'infinity'::date)));  -- what a swap of days replaces

CREATE TABLE alarm_episodes (
    episode_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vehicle_id bigint NOT NULL,
    revision integer NOT NULL DEFAULT 1,
    day date NOT NULL,
    settled_on date,
    start_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL,
    source smallint NOT NULL,
    code smallint NOT NULL,
    level smallint NOT NULL,
    records integer NOT NULL,
    late smallint,
    value_min double precision,
    value_max double precision,
    longitude_deg double precision,
    latitude_deg double precision,
    raised_at timestamptz NOT NULL DEFAULT now(),
    acknowledged_at timestamptz,
    acknowledged_by text,
    closed_at timestamptz,
    closed_by text,
    note text
);
CREATE INDEX alarm_episodes_vehicle ON alarm_episodes (vehicle_id, start_at);
CREATE INDEX alarm_episodes_day ON alarm_episodes (day);
CREATE INDEX alarm_episodes_settled ON alarm_episodes (vehicle_id, (coalesce(settled_on, 'infinity'::date)));  -- what a swap of days replaces

CREATE TABLE cell_outliers (
    vehicle_id bigint NOT NULL,
    day date NOT NULL,
    settled_on date,
    start_at timestamptz NOT NULL,
    cell smallint NOT NULL,
    usable_rows integer,
    z_rows integer,
    robust_rows integer,
    deviation_mv double precision,
    PRIMARY KEY (vehicle_id, day, cell)
);
CREATE INDEX cell_outliers_day ON cell_outliers (day);
CREATE INDEX cell_outliers_settled ON cell_outliers (vehicle_id, (coalesce(settled_on, 'infinity'::date)));  -- what a swap of days replaces

CREATE TABLE dc_resistance (
    vehicle_id bigint NOT NULL,
    day date NOT NULL,
    settled_on date,
    start_at timestamptz NOT NULL,
    temp_class_c smallint NOT NULL,
    samples integer,
    median_mohm double precision,
    soc_mean_pct double precision,
    temp_mean_c double precision,
    PRIMARY KEY (vehicle_id, day, temp_class_c)
);
CREATE INDEX dc_resistance_day ON dc_resistance (day);
CREATE INDEX dc_resistance_settled ON dc_resistance (vehicle_id, (coalesce(settled_on, 'infinity'::date)));  -- what a swap of days replaces

CREATE TABLE cell_rests (
    vehicle_id bigint NOT NULL,
    day date NOT NULL,
    settled_on date,
    start_at timestamptz NOT NULL,
    end_at timestamptz NOT NULL,
    cell smallint NOT NULL,
    drop_mv_per_day double precision,
    median_drop_mv_per_day double precision,
    PRIMARY KEY (vehicle_id, day, start_at)
);
CREATE INDEX cell_rests_day ON cell_rests (day);
CREATE INDEX cell_rests_settled ON cell_rests (vehicle_id, (coalesce(settled_on, 'infinity'::date)));  -- what a swap of days replaces

-- Capacity by month: the median of the charges that allow one (4.5), at least three of them.
CREATE TABLE battery_capacity (
    vehicle_id  bigint NOT NULL,
    month       date NOT NULL,  -- its first day, local
    charges     integer NOT NULL,
    capacity_ah double precision NOT NULL,
    p25_ah      double precision NOT NULL,
    p75_ah      double precision NOT NULL,
    odometer_km double precision,
    PRIMARY KEY (vehicle_id, month)
);
CREATE INDEX battery_capacity_month ON battery_capacity (month);

-- Records of parked charging of a vehicle's days, and of these those with a raw current above +1 A (3.2): the sums
-- over vehicle_day.charging_sign, from which the sign of the current is told.
CREATE TABLE statistics_signs (
    vehicle_id bigint PRIMARY KEY,
    charging   bigint NOT NULL,
    above      bigint NOT NULL
) WITH (fillfactor = 50);

-- Reports that were stored already, by vehicle and local day of collection: a fact about the sending, not about the
-- vehicle, so it is kept apart from the statistics.
CREATE TABLE vehicle_resends (
    vehicle_id bigint NOT NULL,
    day        date NOT NULL,
    duplicates bigint NOT NULL DEFAULT 0,
    conflicts  bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (vehicle_id, day)
) WITH (fillfactor = 50);
