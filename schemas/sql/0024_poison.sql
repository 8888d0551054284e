-- What was raised when a frame was stored that is poison, or a record read that is torn.

ALTER TABLE dead_letters ADD error text;
