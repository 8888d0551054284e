-- What an operator knows about vehicles and models. Every figure may be unknown (NULL); a statistic that needs
-- one that is missing says so.

CREATE TABLE models (
    model                    text COLLATE "C" PRIMARY KEY,
    manufacturer             text,
    category                 text CHECK (category IN ('passenger', 'bus', 'special')),
    powertrain               text CHECK (powertrain IN ('BEV', 'PHEV', 'FCV')),
    battery_kwh              double precision CHECK (battery_kwh > 0),          -- nominal energy
    battery_ah               double precision CHECK (battery_ah > 0),           -- rated capacity
    chemistry                text,                                              -- NCM, LFP, ...
    battery_supplier         text,
    cells                    integer CHECK (cells BETWEEN 1 AND 65535),         -- cells in series, as reported
    probes                   integer CHECK (probes BETWEEN 1 AND 65535),
    certified_kwh_per_100km  double precision CHECK (certified_kwh_per_100km > 0),
    electric_range_km        double precision CHECK (electric_range_km >= 0),   -- type approval; dual credit
    kerb_mass_kg             double precision CHECK (kerb_mass_kg > 0),
    energy_density_wh_per_kg double precision CHECK (energy_density_wh_per_kg >= 0),
    fuel_l_per_100km         double precision CHECK (fuel_l_per_100km >= 0),
    fuel_cell_kw             double precision CHECK (fuel_cell_kw >= 0),
    temp_limit_c             double precision,                                  -- maker's highest cell temperature
    current_inverted         boolean NOT NULL DEFAULT false,                    -- reports charging as positive (found)
    updated_at               timestamptz NOT NULL DEFAULT now()
);

ALTER TABLE vehicles
    ADD usage                   text CHECK (usage IN ('private', 'taxi', 'rental', 'bus', 'coach', 'logistics', 'special')),
    ADD plate                   text,
    ADD battery_kwh             double precision CHECK (battery_kwh > 0),  -- of this vehicle; NULL: its model's
    ADD battery_ah              double precision CHECK (battery_ah > 0),
    ADD chemistry               text,
    ADD battery_supplier        text,
    ADD cells                   integer CHECK (cells BETWEEN 1 AND 65535),
    ADD probes                  integer CHECK (probes BETWEEN 1 AND 65535),
    ADD certified_kwh_per_100km double precision CHECK (certified_kwh_per_100km > 0),
    ADD upload                  text NOT NULL DEFAULT 'periodic' CHECK (upload IN ('periodic', 'on_change')),
    ADD registered_at           timestamptz,
    ADD retired_at              timestamptz,
    ADD current_inverted        boolean NOT NULL DEFAULT false;  -- for vehicles without a model
CREATE INDEX vehicles_model ON vehicles (model);

-- A vehicle with what is known of it, its own figure before its model's. Unknown groups read 'unknown'.
CREATE VIEW vehicle_facts AS
SELECT v.vehicle_id, v.vin, v.registered, v.first_seen_at, v.registered_at, v.retired_at, v.plate, v.upload,
       coalesce(v.model, 'unknown') AS model, coalesce(v.fleet, 'unknown') AS fleet,
       coalesce(v.region, 'unknown') AS region, coalesce(v.usage, 'unknown') AS usage,
       coalesce(v.battery_supplier, m.battery_supplier, 'unknown') AS battery_supplier,
       coalesce(v.chemistry, m.chemistry, 'unknown') AS chemistry,
       coalesce(m.category, 'unknown') AS category,
       coalesce(v.battery_kwh, m.battery_kwh) AS battery_kwh, coalesce(v.battery_ah, m.battery_ah) AS battery_ah,
       coalesce(v.cells, m.cells) AS cells, coalesce(v.probes, m.probes) AS probes,
       coalesce(v.certified_kwh_per_100km, m.certified_kwh_per_100km) AS certified_kwh_per_100km,
       m.temp_limit_c, CASE WHEN v.model IS NULL THEN v.current_inverted ELSE coalesce(m.current_inverted, false) END
           AS current_inverted
FROM vehicles v LEFT JOIN models m USING (model);
