-- Vehicles, what each said last, and the words that other tables use.

CREATE TABLE vehicles (
    vehicle_id    bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    -- COLLATE "C": a prefix search uses the index whatever the database's locale
    vin           text COLLATE "C" NOT NULL UNIQUE CHECK (vin ~ '^[ -~]{1,17}$'),
    registered    boolean NOT NULL DEFAULT false,  -- in the registry (the allowlist)
    password_hash text,                            -- argon2; NULL: no password
    first_seen_at timestamptz,                     -- NULL: imported, has not reported yet
    model         text,
    fleet         text,
    region        text
);
CREATE INDEX vehicles_registered ON vehicles (vin) WHERE registered;

-- The newest report of each vehicle, by (time, kind, part). Never goes backwards.
CREATE TABLE vehicle_state (
    vehicle_id      bigint PRIMARY KEY,
    time            timestamptz NOT NULL,
    kind            smallint NOT NULL,
    part            smallint NOT NULL,
    received_at     timestamptz NOT NULL,
    edition         smallint NOT NULL,
    door            smallint NOT NULL,
    speed_kmh       real,
    odometer_km     double precision,
    soc_pct         smallint,
    total_voltage_v real,
    total_current_a real,
    vehicle_state   smallint,
    charge_state    smallint,
    alarm_level     smallint,
    alarm_flags     bigint,
    longitude_deg   double precision,
    latitude_deg    double precision,
    location_valid  smallint,
    reports         bigint NOT NULL  -- telemetry rows of the vehicle, each counted once
) WITH (
    -- Updated with every batch, and no index on what changes: half-empty pages keep the new version on
    -- the old one's page (HOT), so neither the index nor the table grows.
    fillfactor = 50,
    autovacuum_vacuum_scale_factor = 0.05
);

-- The signal catalogue of the program that migrated last; `telemetry.flaws` names signals by position.
CREATE TABLE signals (
    position smallint PRIMARY KEY,
    name     text NOT NULL UNIQUE,
    unit     text NOT NULL,
    sql      text NOT NULL,
    div      integer NOT NULL,
    text     text NOT NULL
);

-- Settings that the stored data depend on: set once, a change is refused.
CREATE TABLE settings_fixed (
    name   text PRIMARY KEY,
    value  text NOT NULL,
    set_at timestamptz NOT NULL DEFAULT now()
);
