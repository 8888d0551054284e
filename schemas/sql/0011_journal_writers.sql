-- An append whose answer was lost is tried again; whether the first try took effect only the database knows.
-- So each writer numbers its appends, and one that is here already is answered with where it lies.

CREATE TABLE journal_writers (
    writer   uuid PRIMARY KEY,        -- one run of one process
    sequence bigint NOT NULL,         -- number of its newest append
    first    bigint NOT NULL,         -- offset of that append's first record
    seen_at  timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50);

DROP FUNCTION journal_append(integer[], bytea[]);

-- Appends records; returns the offset of the first, the others follow it one by one.
-- The lock is held until after the commit is visible, so that offsets become visible in their order: a
-- reader that has seen one will never find a lower one later. Appends of several gateways queue here; each
-- brings all that it has gathered meanwhile. The lock is also why a second try sees what the first one did.
CREATE FUNCTION journal_append(by_writer uuid, number bigint, partitions integer[], bodies bytea[])
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    today  integer := floor(extract(epoch FROM clock_timestamp()) / 86400);
    last   bigint;
    start  bigint;
    known  journal_writers%ROWTYPE;
BEGIN
    PERFORM pg_advisory_xact_lock(7236328, 1);
    SELECT * INTO known FROM journal_writers w WHERE w.writer = by_writer;
    IF known.sequence = number THEN
        RETURN known.first;
    ELSIF known.sequence > number THEN
        RAISE EXCEPTION 'append % of journal writer % comes after its append %', number, by_writer, known.sequence;
    END IF;
    last := (SELECT last_value FROM journal_offsets);
    -- A clock that steps back goes on in the day it came from.
    start := greatest(last + 1, today::bigint << 32);
    -- Tomorrow's partition is made today, so midnight finds it there. Looked up every time: a sequence keeps
    -- its value when a transaction fails, a new table does not.
    today := start >> 32;
    IF to_regclass('journal_' || to_char(date '1970-01-01' + today + 1, 'YYYYMMDD')) IS NULL THEN
        PERFORM ensure_journal_days(date '1970-01-01' + today, date '1970-01-01' + today + 1);
    END IF;
    PERFORM setval('journal_offsets', start + cardinality(partitions) - 1);
    INSERT INTO journal (partition, "offset", body)
    SELECT r.partition, start + r.n - 1, r.body
    FROM unnest(partitions, bodies) WITH ORDINALITY AS r (partition, body, n);
    IF known.writer IS NULL THEN
        -- Writers that ended long ago will not try again.
        DELETE FROM journal_writers w WHERE w.seen_at < clock_timestamp() - interval '7 days';
        INSERT INTO journal_writers (writer, sequence, first) VALUES (by_writer, number, start);
    ELSE
        UPDATE journal_writers w SET sequence = number, first = start, seen_at = clock_timestamp()
        WHERE w.writer = by_writer;
    END IF;
    RETURN start;
END $$;
