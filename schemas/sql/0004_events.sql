-- Logins and refused frames. Their key is where the frame lies in the journal, so that writing one twice is harmless.

CREATE TABLE logins (
    partition   integer NOT NULL,
    "offset"    bigint NOT NULL,
    position    integer NOT NULL,  -- frame within the journal record
    received_at timestamptz NOT NULL,
    time        timestamptz NOT NULL,
    command     smallint NOT NULL,  -- 1 login, 4 logout, 5 platform login, 6 platform logout
    edition     smallint NOT NULL,
    door        smallint NOT NULL,
    vin         text COLLATE "C" NOT NULL,
    vehicle_id  bigint,             -- NULL for a platform
    serial      integer,
    iccid       text,
    pack_codes  text[] NOT NULL DEFAULT '{}',
    username    text,
    PRIMARY KEY (partition, "offset", position)
);
CREATE INDEX logins_vehicle ON logins (vehicle_id, received_at, partition, "offset", position);

CREATE TABLE dead_letters (
    partition   integer NOT NULL,
    "offset"    bigint NOT NULL,
    position    integer NOT NULL,
    received_at timestamptz NOT NULL,
    reason      smallint NOT NULL,  -- schemas/reasons.py
    detail      bigint NOT NULL,    -- byte of the frame where it goes wrong
    door        smallint NOT NULL,
    codec       smallint NOT NULL,
    vin         text COLLATE "C",   -- as claimed
    peer        text,
    client      text,
    frame       bytea NOT NULL,
    PRIMARY KEY (partition, "offset", position)
);
CREATE INDEX dead_letters_received ON dead_letters (received_at, partition, "offset", position);
CREATE INDEX dead_letters_vin ON dead_letters (vin, received_at) WHERE vin IS NOT NULL;
