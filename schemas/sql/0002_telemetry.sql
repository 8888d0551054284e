-- One wide row per report: both editions under the same names and units (schemas/signals.py).
-- A test holds the signal columns against the catalogue.

CREATE TABLE telemetry_columns (
    vehicle_id  bigint NOT NULL,
    time        timestamptz NOT NULL,  -- when the vehicle collected it
    received_at timestamptz NOT NULL,  -- when the gateway had it
    kind        smallint NOT NULL,     -- 2 report, 3 reissue
    part        smallint NOT NULL,     -- 0, or the first cell number of a list split over frames
    edition     smallint NOT NULL,     -- 16 or 25
    door        smallint NOT NULL,     -- schemas.batch.Door
    digest      bigint NOT NULL,       -- 64-bit hash of the data unit: tells a resend from a contradiction
    notes       smallint,              -- schemas.batch.NOTES, NULL for none
    vehicle_state smallint,
    charge_state smallint,
    run_mode smallint,
    speed_kmh real,
    odometer_km double precision,
    total_voltage_v real,
    total_current_a real,
    soc_pct smallint,
    dcdc_state smallint,
    gear smallint,
    insulation_resistance_kohm integer,
    accelerator_pct smallint,
    brake_pct smallint,
    motor_count smallint,
    motor_no smallint,
    motor_state smallint,
    motor_controller_temp_c smallint,
    motor_speed_rpm integer,
    motor_torque_nm real,
    motor_temp_c smallint,
    motor_input_voltage_v real,
    motor_bus_current_a real,
    fuel_cell_voltage_v real,
    fuel_cell_current_a real,
    fuel_cell_consumption_kg_per_100km real,
    fuel_cell_probe_count integer,
    h2_max_temp_c real,
    h2_max_temp_probe smallint,
    h2_max_conc_mg_per_kg integer,
    h2_max_conc_vol_pct real,
    h2_max_conc_sensor smallint,
    h2_max_pressure_mpa real,
    h2_max_pressure_sensor smallint,
    hv_dcdc_state smallint,
    h2_remaining_pct smallint,
    hv_dcdc_temp_c smallint,
    engine_state smallint,
    crankshaft_rpm integer,
    fuel_consumption_l_per_100km real,
    location_valid smallint,
    coord_sys smallint,
    longitude_deg double precision,
    latitude_deg double precision,
    max_voltage_subsystem smallint,
    max_voltage_cell smallint,
    max_cell_voltage_v real,
    min_voltage_subsystem smallint,
    min_voltage_cell smallint,
    min_cell_voltage_v real,
    max_temp_subsystem smallint,
    max_temp_probe smallint,
    max_temp_c smallint,
    min_temp_subsystem smallint,
    min_temp_probe smallint,
    min_temp_c smallint,
    alarm_level smallint,
    alarm_flags bigint,
    pack_fault_count smallint,
    motor_fault_count smallint,
    engine_fault_count smallint,
    other_fault_count smallint,
    general_fault_count smallint,
    pack_count smallint,
    pack_voltage_v real,
    pack_current_a real,
    pack_cell_total integer,
    cell_count integer,
    cell_max_v real,
    cell_min_v real,
    cell_sum_v real,
    probe_count integer,
    probe_max_c smallint,
    probe_min_c smallint,
    stack_count smallint,
    stack_no smallint,
    stack_voltage_v real,
    stack_current_a real,
    stack_h2_inlet_pressure_kpa real,
    stack_air_inlet_pressure_kpa real,
    stack_air_inlet_temp_c smallint,
    stack_probe_count integer,
    supercap_system_no smallint,
    supercap_voltage_v real,
    supercap_current_a real,
    supercap_cell_count integer,
    supercap_probe_count integer,
    supercap_max_voltage_system smallint,
    supercap_max_voltage_cell integer,
    supercap_max_cell_voltage_v real,
    supercap_min_voltage_system smallint,
    supercap_min_voltage_cell integer,
    supercap_min_cell_voltage_v real,
    supercap_max_temp_system smallint,
    supercap_max_temp_probe integer,
    supercap_max_temp_c smallint,
    supercap_min_temp_system smallint,
    supercap_min_temp_probe integer,
    supercap_min_temp_c smallint,
    -- lists as on the wire, from the count byte on; 0005_unpack.sql reads them
    cells       bytea,
    temps       bytea,
    motors      bytea,
    faults      bytea,
    rest        bytea,  -- blocks without columns: {type u8, length u16, body} each
    flaws       bytea   -- {signal u8, state u8} of every signal that is not simply valid
);

-- With TimescaleDB a hypertable, else native partitions; in both cases one chunk a UTC day, and the same names.
-- CREATE EXTENSION ends the session unless the library was loaded at the server's start, so that is asked first.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_extension WHERE extname = 'timescaledb')
       OR EXISTS (SELECT FROM pg_available_extensions WHERE name = 'timescaledb')
       AND current_setting('shared_preload_libraries') LIKE '%timescaledb%' THEN
        CREATE EXTENSION IF NOT EXISTS timescaledb;
        ALTER TABLE telemetry_columns RENAME TO telemetry;
        EXECUTE $q$ SELECT create_hypertable('telemetry', by_range('time', interval '1 day'),
                                             create_default_indexes => false) $q$;
    ELSE
        CREATE TABLE telemetry (LIKE telemetry_columns INCLUDING ALL) PARTITION BY RANGE (time);
        DROP TABLE telemetry_columns;
    END IF;
END $$;

-- A vehicle's history in order, its newest row first or last, and the promise that a report is there once.
-- No second index on time alone: fleet questions are asked of rollups and vehicle_state, and every further
-- index costs a quarter of the COPY rate.
CREATE UNIQUE INDEX telemetry_key ON telemetry (vehicle_id, time, kind, part);

-- Makes the partitions of [first, last]; returns how many were missing. Nothing to do for a hypertable.
CREATE FUNCTION ensure_telemetry_days(first date, last date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    day  date;
    name text;
    made integer := 0;
BEGIN
    IF (SELECT relkind FROM pg_class WHERE oid = 'telemetry'::regclass) <> 'p' THEN
        RETURN 0;
    END IF;
    FOR day IN SELECT generate_series(first, last, interval '1 day')::date LOOP
        name := 'telemetry_' || to_char(day, 'YYYYMMDD');
        CONTINUE WHEN to_regclass(name) IS NOT NULL;
        -- Two pipelines may want the same day at once. Then the table itself is asked: to_regclass may still
        -- remember the "no" from before the wait.
        PERFORM pg_advisory_xact_lock(7236328, 2);
        CONTINUE WHEN EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                              WHERE i.inhparent = 'telemetry'::regclass AND c.relname = name);
        -- LIKE and ATTACH rather than PARTITION OF: readers and writers of other days are not kept waiting.
        -- toast_tuple_target: a row of some hundred cells stays in one piece, neither compressed nor cut.
        EXECUTE format('CREATE TABLE %I (LIKE telemetry INCLUDING DEFAULTS INCLUDING STORAGE)'
                       ' WITH (toast_tuple_target = 8160)', name);
        EXECUTE format('ALTER TABLE telemetry ATTACH PARTITION %I FOR VALUES FROM (%L) TO (%L)', name,
                       day::timestamp AT TIME ZONE 'UTC', (day + 1)::timestamp AT TIME ZONE 'UTC');
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;
