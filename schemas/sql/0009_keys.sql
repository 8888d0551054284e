-- Keys of vehicles and platforms: what opens encrypted data units, what verifies signatures.

CREATE TABLE vehicle_keys (
    key_id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner       text COLLATE "C" NOT NULL CHECK (owner ~ '^[!-~]{1,17}$'),  -- VIN, or the platform's code
    scope       text NOT NULL CHECK (scope IN ('vehicle', 'platform')),
    purpose     text NOT NULL CHECK (purpose IN ('decrypt', 'verify')),
    algorithm   smallint NOT NULL,  -- decrypt: 2 RSA, 3 AES, 4 SM2, 5 SM4; verify: 1 SM2, 2 RSA, 3 ECC
    secret      bytea NOT NULL,     -- sealed (nonce, AES-256-GCM) when sealed_with says by which master key
    sealed_with text,               -- fingerprint of the master key; NULL: in the clear
    fingerprint bytea NOT NULL,     -- keyed hash of the secret: tells that two keys are the same, and nothing else
    valid_from  timestamptz,        -- NULL: always was, always will be
    valid_to    timestamptz,
    source      text NOT NULL CHECK (source IN ('operator', 'exchange')),  -- exchange: a 0x0B frame, edition 2025
    from_frame  text,               -- partition-offset-position of that frame in the journal
    added_at    timestamptz NOT NULL DEFAULT now(),
    UNIQUE NULLS NOT DISTINCT (owner, scope, purpose, algorithm, fingerprint, valid_from, valid_to)
);

-- How often an operator changed the table; pipelines ask for this one number.
CREATE TABLE key_changes (
    single  boolean PRIMARY KEY DEFAULT true CHECK (single),
    version bigint NOT NULL DEFAULT 0
);
INSERT INTO key_changes DEFAULT VALUES;
