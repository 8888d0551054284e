-- Signals that are in no edition of the standard: those of a signals file (schemas/custom), and the fields of JSON
-- samples that no signal has a name for. {"door_count": 4, "cabin_temp_c": 21.5, "_flaws": {"tyre_1_kpa": "invalid"}};
-- NULL when there are none. A signal with a flaw has no value, and is named under "_flaws" with its state.

ALTER TABLE telemetry ADD extra jsonb;
