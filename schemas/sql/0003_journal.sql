-- The journal: raw frames, many to a record (schemas/journal/record.py), as the gateway acknowledged them.
--
-- "offset" rises through all partitions and never repeats. Its upper bits are the UTC day of the append
-- (offset >> 32 = days since 1970), so the table is partitioned by day *through* the offset: a reader who
-- knows the offset it has reads one day, and retention drops a day as a whole.

CREATE TABLE journal (
    partition   integer NOT NULL,
    "offset"    bigint NOT NULL,
    appended_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    body        bytea NOT NULL,
    PRIMARY KEY (partition, "offset")
) PARTITION BY RANGE ("offset");
ALTER TABLE journal ALTER body SET STORAGE EXTERNAL;  -- compressed already, trying again wastes the CPU

CREATE SEQUENCE journal_offsets MINVALUE 0;

-- Makes the journal's partitions of [first, last]; returns how many were missing.
CREATE FUNCTION ensure_journal_days(first date, last date) RETURNS integer LANGUAGE plpgsql AS $$
DECLARE
    day  date;
    name text;
    made integer := 0;
BEGIN
    FOR day IN SELECT generate_series(first, last, interval '1 day')::date LOOP
        name := 'journal_' || to_char(day, 'YYYYMMDD');
        PERFORM pg_advisory_xact_lock(7236328, 1);  -- the appenders' lock
        CONTINUE WHEN EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
                              WHERE i.inhparent = 'journal'::regclass AND c.relname = name);
        EXECUTE format('CREATE TABLE %I (LIKE journal INCLUDING DEFAULTS INCLUDING STORAGE)'
                       ' WITH (toast_tuple_target = 8160)', name);
        EXECUTE format('ALTER TABLE journal ATTACH PARTITION %I FOR VALUES FROM (%s) TO (%s)', name,
                       (day - date '1970-01-01')::bigint << 32, (day + 1 - date '1970-01-01')::bigint << 32);
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;

-- Appends records; returns the offset of the first, the others follow it one by one.
-- The lock is held until after the commit is visible, so that offsets become visible in their order: a
-- reader that has seen one will never find a lower one later. Appends of several gateways queue here; each
-- brings all that it has gathered meanwhile.
CREATE FUNCTION journal_append(partitions integer[], bodies bytea[]) RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    today integer := floor(extract(epoch FROM clock_timestamp()) / 86400);
    last  bigint;
    first bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(7236328, 1);
    last := (SELECT last_value FROM journal_offsets);
    -- A clock that steps back goes on in the day it came from.
    first := greatest(last + 1, today::bigint << 32);
    -- Tomorrow's partition is made today, so midnight finds it there. Looked up every time: a sequence keeps
    -- its value when a transaction fails, a new table does not.
    today := first >> 32;
    IF to_regclass('journal_' || to_char(date '1970-01-01' + today + 1, 'YYYYMMDD')) IS NULL THEN
        PERFORM ensure_journal_days(date '1970-01-01' + today, date '1970-01-01' + today + 1);
    END IF;
    PERFORM setval('journal_offsets', first + cardinality(partitions) - 1);
    INSERT INTO journal (partition, "offset", body)
    SELECT r.partition, first + r.n - 1, r.body
    FROM unnest(partitions, bodies) WITH ORDINALITY AS r (partition, body, n);
    RETURN first;
END $$;

-- Partition of a VIN: FNV-1a over its 17 zero-padded bytes, folded (schemas.keys.partition_of).
CREATE FUNCTION journal_partition(vin text, partitions integer) RETURNS integer
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    bytes bytea := rpad(vin, 17, ' ')::bytea;
    mixed bigint := 2166136261;
BEGIN
    FOR i IN 0..16 LOOP
        mixed := ((mixed # CASE WHEN i < length(vin) THEN get_byte(bytes, i) ELSE 0 END) * 16777619) & 4294967295;
    END LOOP;
    RETURN (mixed # (mixed >> 16)) % partitions;
END $$;

-- How far each journal partition is stored; moves in the transaction that writes the rows.
CREATE TABLE journal_positions (
    partition    integer PRIMARY KEY,
    "offset"     bigint NOT NULL,
    committed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What became of every frame: frames = rows + duplicates + conflicts + rejected + sessions + other.
CREATE TABLE ledger (
    partition  integer PRIMARY KEY,
    frames     bigint NOT NULL DEFAULT 0,  -- taken from the journal
    rows       bigint NOT NULL DEFAULT 0,  -- reports that became telemetry rows
    duplicates bigint NOT NULL DEFAULT 0,  -- reports stored already, byte for byte
    conflicts  bigint NOT NULL DEFAULT 0,  -- reports whose key is stored with other content (the smaller digest stays)
    rejected   bigint NOT NULL DEFAULT 0,  -- dead letters
    sessions   bigint NOT NULL DEFAULT 0,  -- logins and logouts
    other      bigint NOT NULL DEFAULT 0   -- heartbeats, time syncs and the like, which leave no row
) WITH (fillfactor = 50);
