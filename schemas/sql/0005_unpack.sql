-- Reading the lists that telemetry keeps as they came (GB/T 32960.3, clause numbers of the 2016 edition).
-- A list that ends early gives what is there. States are named as in schemas.signals.State.

CREATE FUNCTION wire_u16(bytes bytea, at integer) RETURNS integer
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN get_byte(bytes, at) << 8 | get_byte(bytes, at + 1);

CREATE FUNCTION wire_u32(bytes bytea, at integer) RETURNS bigint
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN wire_u16(bytes, at)::bigint << 16 | wire_u16(bytes, at + 2);

-- All ones is "invalid", all ones minus one "abnormal"; above the range is neither.
CREATE FUNCTION wire_state(raw bigint, most bigint, bits integer) RETURNS text
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE WHEN raw <= most THEN 'valid'
            WHEN raw = (1::bigint << bits) - 1 THEN 'invalid'
            WHEN raw = (1::bigint << bits) - 2 THEN 'abnormal'
            ELSE 'out_of_range' END;

-- raw / div + bias when it is a value, else NULL
CREATE FUNCTION wire_value(raw bigint, most bigint, div real, bias real) RETURNS real
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN CASE WHEN raw <= most THEN ((raw::double precision / div) + bias)::real END;

-- The packs of a cell-voltage block: where each one's list begins (byte), its length, its first cell's number.
CREATE FUNCTION cell_lists(cells bytea, edition smallint) RETURNS TABLE (pack smallint, first_cell integer, at integer, n integer)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    size   integer := length(cells);
    packs  integer;
    here   integer := 1;
    header integer := CASE edition WHEN 16 THEN 10 ELSE 7 END;
BEGIN
    packs := CASE WHEN size > 0 THEN get_byte(cells, 0) ELSE 0 END;
    IF packs >= 254 THEN  -- a sentinel: no list
        RETURN;
    END IF;
    FOR i IN 1..packs LOOP
        EXIT WHEN here + header > size;
        pack := get_byte(cells, here);
        IF edition = 16 THEN
            n := get_byte(cells, here + 9);  -- cells in this frame, never the pack's total
            first_cell := wire_u16(cells, here + 7);
            first_cell := CASE WHEN first_cell BETWEEN 1 AND 65531 THEN first_cell ELSE 1 END;
        ELSE
            n := wire_u16(cells, here + 5);
            n := CASE WHEN n >= 65534 THEN 0 ELSE n END;
            first_cell := 1;
        END IF;
        at := here + header;
        n := least(n, (size - at) / 2);
        RETURN NEXT;
        here := at + 2 * n;
    END LOOP;
END $$;

CREATE FUNCTION unpack_cells(cells bytea, edition smallint) RETURNS TABLE (pack smallint, cell integer, voltage_v real, state text)
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE ROWS 100 AS $$
    SELECT l.pack, l.first_cell + i, wire_value(r.raw, 60000, 1000, 0), wire_state(r.raw, 60000, 16)
    FROM cell_lists(cells, edition) WITH ORDINALITY AS l (pack, first_cell, at, n, list)
    CROSS JOIN LATERAL generate_series(0, l.n - 1) AS i
    CROSS JOIN LATERAL (SELECT wire_u16(cells, l.at + 2 * i)) AS r (raw)
    ORDER BY l.list, i
$$;

-- Voltages in the order of the report, all packs one after the other; NULL where not valid.
CREATE FUNCTION cell_voltages(cells bytea, edition smallint) RETURNS real[]
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    list   record;
    raw    integer;
    result real[] := '{}';
BEGIN
    FOR list IN SELECT * FROM cell_lists(cells, edition) LOOP
        FOR i IN 0..list.n - 1 LOOP
            raw := get_byte(cells, list.at + 2 * i) << 8 | get_byte(cells, list.at + 2 * i + 1);
            result := result || CASE WHEN raw <= 60000 THEN (raw / 1000.0::double precision)::real END;
        END LOOP;
    END LOOP;
    RETURN result;
END $$;

CREATE FUNCTION unpack_temps(temps bytea, edition smallint) RETURNS TABLE (pack smallint, probe integer, temp_c smallint, state text)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE ROWS 20 AS $$
DECLARE
    size  integer := length(temps);
    packs integer;
    here  integer := 1;
    n     integer;
    raw   integer;
BEGIN
    packs := CASE WHEN size > 0 THEN get_byte(temps, 0) ELSE 0 END;
    IF packs >= 254 THEN
        RETURN;
    END IF;
    FOR i IN 1..packs LOOP
        EXIT WHEN here + 3 > size;
        pack := get_byte(temps, here);
        n := wire_u16(temps, here + 1);
        n := CASE WHEN n >= 65534 THEN 0 ELSE least(n, size - here - 3) END;
        FOR p IN 1..n LOOP
            raw := get_byte(temps, here + 2 + p);
            probe := p;
            temp_c := CASE WHEN raw <= 250 THEN raw - 40 END;
            state := wire_state(raw, 250, 8);
            RETURN NEXT;
        END LOOP;
        here := here + 3 + n;
    END LOOP;
END $$;

CREATE FUNCTION probe_temps(temps bytea, edition smallint) RETURNS smallint[]
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (SELECT coalesce(array_agg(t.temp_c ORDER BY t.n), '{}')
        FROM unpack_temps(temps, edition) WITH ORDINALITY AS t (pack, probe, temp_c, state, n));

CREATE FUNCTION unpack_motors(motors bytea, edition smallint) RETURNS TABLE (
    motor_no smallint, motor_state smallint, motor_controller_temp_c smallint, motor_speed_rpm integer,
    motor_torque_nm real, motor_temp_c smallint, motor_input_voltage_v real, motor_bus_current_a real
)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE ROWS 2 AS $$
DECLARE
    size  integer := length(motors);
    count integer;
    width integer := CASE edition WHEN 16 THEN 12 ELSE 10 END;
    at    integer;
BEGIN
    count := CASE WHEN size > 0 THEN get_byte(motors, 0) ELSE 0 END;
    IF count >= 254 THEN
        RETURN;
    END IF;
    FOR i IN 0..count - 1 LOOP
        at := 1 + i * width;
        EXIT WHEN at + width > size;
        motor_no := CASE WHEN get_byte(motors, at) < 254 THEN get_byte(motors, at) END;
        motor_state := CASE WHEN get_byte(motors, at + 1) BETWEEN 1 AND 4 THEN get_byte(motors, at + 1) END;
        motor_controller_temp_c := wire_value(get_byte(motors, at + 2), 250, 1, -40);
        IF edition = 16 THEN
            motor_speed_rpm := wire_value(wire_u16(motors, at + 3), 65531, 1, -20000);
            motor_torque_nm := wire_value(wire_u16(motors, at + 5), 65531, 10, -2000);
            motor_temp_c := wire_value(get_byte(motors, at + 7), 250, 1, -40);
            motor_input_voltage_v := wire_value(wire_u16(motors, at + 8), 60000, 10, 0);
            motor_bus_current_a := wire_value(wire_u16(motors, at + 10), 20000, 10, -1000);
        ELSE
            motor_speed_rpm := wire_value(wire_u16(motors, at + 3), 65531, 1, -32000);
            motor_torque_nm := wire_value(wire_u32(motors, at + 5), 400000, 10, -20000);
            motor_temp_c := wire_value(get_byte(motors, at + 9), 250, 1, -40);
        END IF;
        RETURN NEXT;
    END LOOP;
END $$;

-- The fault lists of the alarm block, from the first count byte on. Lists: pack, motor, engine, other, and in
-- the 2025 edition general, whose code is the number of the general alarm flag and which alone has a level.
CREATE FUNCTION fault_codes(faults bytea, edition smallint) RETURNS TABLE (list text, code bigint, level smallint)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE ROWS 4 AS $$
DECLARE
    size  integer := length(faults);
    names text[] := ARRAY['pack', 'motor', 'engine', 'other', 'general'];
    here  integer := 0;
    n     integer;
BEGIN
    FOR i IN 1..CASE edition WHEN 16 THEN 4 ELSE 5 END LOOP
        EXIT WHEN here >= size;
        list := names[i];
        n := get_byte(faults, here);
        n := CASE WHEN n >= 254 THEN 0 ELSE n END;
        here := here + 1;
        FOR j IN 1..n LOOP
            IF i < 5 THEN
                EXIT WHEN here + 4 > size;
                code := wire_u32(faults, here);
                here := here + 4;
            ELSE
                EXIT WHEN here + 2 > size;
                code := get_byte(faults, here);
                level := get_byte(faults, here + 1);
                here := here + 2;
            END IF;
            RETURN NEXT;
        END LOOP;
    END LOOP;
END $$;

CREATE FUNCTION unpack_rest(rest bytea) RETURNS TABLE (type smallint, body bytea)
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE ROWS 2 AS $$
DECLARE
    here integer := 0;
    n    integer;
BEGIN
    WHILE here + 3 <= length(rest) LOOP
        n := wire_u16(rest, here + 1);
        type := get_byte(rest, here);
        body := substr(rest, here + 4, n);
        RETURN NEXT;
        here := here + 3 + n;
    END LOOP;
END $$;

-- Signals of a row that are not simply valid, e.g. SELECT t.time, f.* FROM telemetry t, flaws(t.flaws) f
CREATE FUNCTION flaws(flaws bytea) RETURNS TABLE (signal text, state text)
LANGUAGE sql STABLE STRICT PARALLEL SAFE ROWS 5 AS $$
    SELECT s.name, (ARRAY['abnormal', 'invalid', 'out_of_range', 'suspect'])[get_byte(flaws, 2 * i + 1) - 1]
    FROM generate_series(0, length(flaws) / 2 - 1) AS i
    LEFT JOIN signals s ON s.position = get_byte(flaws, 2 * i)
    ORDER BY i
$$;
