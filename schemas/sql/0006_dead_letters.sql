-- Dead letters that people work with: what was done about one, and how many were pruned.

ALTER TABLE dead_letters
    ADD requeued_at    timestamptz,
    ADD requeued_by    text,
    ADD requeued_as    text,         -- partition-offset-position of the frame that went into the journal again
    ADD requeued_frame bytea,        -- what was put there instead of frame, when a person changed it
    ADD replayed_at    timestamptz;  -- `nevstream replay --apply` could read it: it is a row now

CREATE INDEX dead_letters_reason ON dead_letters (reason, received_at);

-- Dead letters that are no longer kept, by reason: sum(ledger.rejected) = kept + pruned - replayed ones still kept.
CREATE TABLE dead_letters_pruned (
    reason    smallint PRIMARY KEY,
    letters   bigint NOT NULL,
    replayed  bigint NOT NULL DEFAULT 0,  -- of these, how many had become rows: the ledger no longer has them as rejected
    pruned_at timestamptz NOT NULL DEFAULT now()
);
