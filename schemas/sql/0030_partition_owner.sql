-- Who may store which partition of the journal, where partitions move between machines (journal.kind = "kafka").
-- A new owner raises the epoch before it reads the position; a commit of an older epoch is refused. So a process that
-- was away for longer than its group waits, and comes back believing that a partition is its own, changes nothing.
-- One that stands still in the middle of a transaction holds the row: its session is ended by who claims.
CREATE TABLE partition_owner (
    partition  integer PRIMARY KEY,
    epoch      bigint NOT NULL,
    owner      text NOT NULL,  -- for people: host and process
    backend    integer NOT NULL,  -- its session in this server, by pid and start
    begun_at   timestamptz NOT NULL,
    claimed_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- Until now there was one durable journal.
INSERT INTO settings_fixed (name, value)
SELECT 'journal.kind', 'postgres' FROM settings_fixed WHERE name = 'journal.partitions';
