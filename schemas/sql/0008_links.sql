-- What happened to connections, and commands that go down to vehicles.

-- From the journal (codec "event"). The key is given by the gateway process, so a record that lies in the journal
-- twice (an append whose outcome was not known) is one event.
CREATE TABLE link_events (
    origin      bigint NOT NULL,   -- a random number of the gateway process
    number      bigint NOT NULL,   -- its own count of events
    occurred_at timestamptz NOT NULL,
    event       text NOT NULL,     -- schemas/link_events.py
    cause       text,
    door        smallint NOT NULL,
    vin         text COLLATE "C",  -- proven, or as claimed where it was refused; NULL when nothing was claimed
    peer        text,
    client      text,
    by_peer     text,              -- replaced: the peer that connected anew
    detail      text,
    times       integer NOT NULL DEFAULT 1,  -- how many like it this one stands for
    PRIMARY KEY (origin, number)
);
CREATE INDEX link_events_vin ON link_events (vin, occurred_at) WHERE vin IS NOT NULL;
CREATE INDEX link_events_occurred ON link_events (occurred_at);

CREATE TABLE commands (
    command_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vin             text COLLATE "C" NOT NULL CHECK (vin ~ '^[!-.0-~]{1,17}$'),
    command         smallint NOT NULL CHECK (command IN (128, 129, 130)),  -- 0x80 query, 0x81 set, 0x82 control
    edition         smallint CHECK (edition IN (16, 25)),  -- NULL: the one the vehicle speaks
    body            jsonb NOT NULL,       -- what was asked for, by name (schemas/gbt32960/downlink.py)
    state           text NOT NULL DEFAULT 'queued'
                    CHECK (state IN ('queued', 'sent', 'answered', 'failed', 'expired')),
    attempts        smallint NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT now(),
    created_by      text NOT NULL,
    expires_at      timestamptz NOT NULL,
    sent_at         timestamptz,          -- the last attempt
    delivered_at    timestamptz,          -- MQTT: its PUBACK
    finished_at     timestamptz,
    gateway         bigint,               -- the process that holds it (as link_events.origin)
    door            smallint,
    ack             smallint,             -- response flag of the answer
    answer          jsonb,                -- the answer's data unit, decoded
    frame           bytea,                -- as sent
    answer_frame    bytea,
    error           text                  -- why it failed, or what keeps it waiting
);
CREATE INDEX commands_vin ON commands (vin, command_id);
CREATE INDEX commands_open ON commands (command_id) WHERE state IN ('queued', 'sent');
