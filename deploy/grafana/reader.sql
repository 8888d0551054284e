-- The role that Grafana asks with: it reads what the dashboards show and nothing else, no passwords, keys or tokens.
-- After every `nevstream migrate` (harmless when nothing is new), as the owner of the tables, who must be allowed to
-- make roles:
--   psql "$DSN" -v ON_ERROR_STOP=1 -f deploy/grafana/reader.sql
--   psql "$DSN" -c '\password nevstream_grafana'
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'nevstream_grafana') THEN
        CREATE ROLE nevstream_grafana LOGIN;
    END IF;
END $$;

-- Somebody's curious panel must not hold up what writes.
ALTER ROLE nevstream_grafana SET default_transaction_read_only = on;
ALTER ROLE nevstream_grafana SET statement_timeout = '30s';

-- vehicle_facts rather than vehicles: that has password hashes.
GRANT SELECT ON
    alarm_episodes, battery_capacity, cell_outliers, cell_rests, charges, cohort_facts, cohort_period, cohorts,
    dc_resistance, dead_letters, ledger, link_events, signal_flaws, telemetry, trips, vehicle_day,
    vehicle_facts, vehicle_state
TO nevstream_grafana;
