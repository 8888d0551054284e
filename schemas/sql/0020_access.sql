-- Who may use the API, and what was changed by whom.

CREATE TABLE api_tokens (
    token_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL CHECK (name ~ '^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$'),  -- a rotated one has it twice
    digest       bytea NOT NULL UNIQUE CHECK (length(digest) = 32),  -- SHA-256 of the token: see schemas/access.py
    role         text NOT NULL CHECK (role IN ('read', 'operate', 'admin')),
    fleets       text[] CHECK (fleets IS NULL OR (cardinality(fleets) > 0 AND role <> 'admin')),  -- NULL: every vehicle; else a tenant
    created_at   timestamptz NOT NULL DEFAULT now(),
    created_by   text NOT NULL,
    expires_at   timestamptz,
    last_used_at timestamptz,  -- to the minute
    revoked_at   timestamptz
);
CREATE INDEX api_tokens_name ON api_tokens (name);

CREATE TABLE audit (
    audit_id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    who      text NOT NULL,      -- name of the token; local: this machine without one; cli:USER
    token_id bigint,             -- no reference: what was done outlives the token
    origin   text NOT NULL,      -- address of the client, or the host of the command line
    action   text NOT NULL,      -- POST /v1/alarms/{id}/acknowledge, or the command: vehicles set-password
    target   text NOT NULL,      -- the path itself, or what the command was about
    change   text,               -- in short, secrets left out
    status   smallint NOT NULL,  -- as HTTP has it; of a command 200 or 500
    outcome  text NOT NULL CHECK (outcome IN ('done', 'refused', 'failed'))
);
CREATE INDEX audit_at ON audit (at);
