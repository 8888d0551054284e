"""The questions of TSBS's iot case in corrected semantics, and NEV twins: plain SQL over telemetry, and ours.

TSBS has trucks with fuel and load; ``reading`` says how each question is read for a battery vehicle.  Both texts of a
question give rows of the same shape: ``keys`` columns that name the row, then values.  No text is taken from TSBS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NEWEST: Final = """
    SELECT DISTINCT ON (t.vehicle_id) t.* FROM telemetry t ORDER BY t.vehicle_id, t.time DESC, t.kind DESC, t.part DESC
"""
# What lies between a report and the one before, in time order.
_STEPS: Final = """
    SELECT f.vin, f.model, f.fleet, f.battery_kwh, f.certified_kwh_per_100km AS certified, s.* FROM (
        SELECT vehicle_id, time, speed_kmh, alarm_level, (time AT TIME ZONE 'Asia/Shanghai')::date AS day,
               charge_state = 1 AS plugged, lag(charge_state = 1) OVER w AS plugged_before,
               extract(epoch FROM time - lag(time) OVER w)::float8 AS dt,
               total_voltage_v::float8 * total_current_a::float8 / 1000 AS kw,
               lag(total_voltage_v::float8 * total_current_a::float8 / 1000) OVER w AS kw_before,
               odometer_km - lag(odometer_km) OVER w AS km
        FROM telemetry WINDOW w AS (PARTITION BY vehicle_id ORDER BY time, kind, part)
    ) s JOIN vehicle_facts f USING (vehicle_id)
"""
_USED: Final = f"""
    SELECT *, (kw + kw_before) / 2 * dt / 3600 AS kwh FROM ({_STEPS}) u
    WHERE dt <= %(gap_s)s AND NOT plugged AND NOT plugged_before
"""
# Buckets of ten minutes with a report in them.
_BUCKETS: Final = """
    SELECT f.vin, f.model, f.fleet, b.* FROM (
        SELECT vehicle_id, date_bin('10 minutes', time, timestamptz 'epoch') AS bucket, avg(speed_kmh) AS speed,
               avg(alarm_level) AS level, avg((alarm_level >= 2)::integer) AS broken
        FROM telemetry {where} GROUP BY 1, 2
    ) b JOIN vehicle_facts f USING (vehicle_id)
"""
_BUCKETS_ALL: Final = _BUCKETS.format(where="")
_BUCKETS_OF: Final = _BUCKETS.format(
    where="WHERE time >= %(since)s AND time < %(until)s AND vehicle_id IN"
    " (SELECT vehicle_id FROM vehicles WHERE fleet = %(fleet)s)"
)


@dataclass(frozen=True, slots=True)
class Question:
    """``keys``: how many columns name a row.  ``reading``: for a battery vehicle.  ``differs``: why ours may be off."""

    name: str
    reading: str
    keys: int
    plain: str
    ours: str
    tsbs: bool = True
    differs: str = ""


def _of_newest(columns: str, where: str) -> str:
    return f"SELECT f.vin{columns} FROM ({NEWEST}) n JOIN vehicle_facts f USING (vehicle_id) {where}"


def _of_state(columns: str, where: str) -> str:
    return f"SELECT f.vin{columns} FROM vehicle_state n JOIN vehicle_facts f USING (vehicle_id) {where}"


_AT: Final = ", n.longitude_deg, n.latitude_deg"
_LOAD: Final = "n.total_voltage_v::float8 * n.total_current_a::float8 / 1000 / f.battery_kwh"
_BUCKET_OFF: Final = "a session's first and last bucket of 10 minutes count whole or not at all; ours counts seconds"
_RUNS: Final = """
    SELECT vin, (min(bucket) AT TIME ZONE 'Asia/Shanghai')::date AS day, count(*) * 600.0 AS seconds FROM (
        SELECT *, bucket - row_number() OVER (PARTITION BY vehicle_id ORDER BY bucket) * interval '10 minutes' AS run
        FROM ({buckets}) b WHERE {condition}
    ) r GROUP BY vehicle_id, vin, run
"""

QUESTIONS: Final = (
    Question("single-last-loc", "newest position of one vehicle", 1,
        _of_newest(_AT, "").replace("FROM telemetry t ORDER", "FROM telemetry t WHERE t.vehicle_id = (SELECT vehicle_id"
            " FROM vehicles WHERE vin = %(vin)s) ORDER"),
        _of_state(_AT, "WHERE f.vin = %(vin)s")),
    Question("last-loc", "newest position of each vehicle of a fleet", 1,
        _of_newest(_AT, "WHERE f.fleet = %(fleet)s"), _of_state(_AT, "WHERE f.fleet = %(fleet)s")),
    Question("low-fuel", "newest SOC below 10 %, of a fleet", 1,
        _of_newest(", n.soc_pct", "WHERE f.fleet = %(fleet)s AND n.soc_pct < 10"),
        _of_state(", n.soc_pct", "WHERE f.fleet = %(fleet)s AND n.soc_pct < 10")),
    Question("high-load", "newest power ÷ battery energy above 0.9 per hour, of a fleet", 1,
        _of_newest(f", {_LOAD}", f"WHERE f.fleet = %(fleet)s AND {_LOAD} > 0.9"),
        _of_state(f", {_LOAD}", f"WHERE f.fleet = %(fleet)s AND {_LOAD} > 0.9")),
    Question("stationary-trucks", "mean speed of reports below 1 km/h in ten minutes, of a fleet", 1,
        """SELECT f.vin FROM telemetry t JOIN vehicle_facts f USING (vehicle_id)
           WHERE f.fleet = %(fleet)s AND t.time >= %(ten_since)s AND t.time < %(ten_until)s
           GROUP BY f.vin HAVING avg(t.speed_kmh) < 1""",
        """SELECT v.vin FROM vehicles v CROSS JOIN LATERAL (
               SELECT avg(t.speed_kmh) AS speed FROM telemetry t WHERE t.vehicle_id = v.vehicle_id
               AND t.time >= %(ten_since)s AND t.time < %(ten_until)s OFFSET 0) s
           WHERE v.fleet = %(fleet)s AND s.speed < 1"""),
    Question("long-driving-sessions", "driven in more than 22 of 24 ten-minute buckets of four hours, of a fleet", 1,
        f"SELECT vin FROM ({_BUCKETS_OF}) b WHERE speed > 1 GROUP BY vin HAVING count(*) > 22",
        """SELECT f.vin FROM vehicle_hour h JOIN vehicle_facts f USING (vehicle_id)
           WHERE f.fleet = %(fleet)s AND h.hour >= %(since)s AND h.hour < %(until)s
           GROUP BY f.vin HAVING sum(h.driving_s) > 22 * 600""", differs=_BUCKET_OFF),
    Question("long-daily-sessions", "driven in more than 60 ten-minute buckets of a local day, of a fleet", 1,
        f"SELECT vin FROM ({_BUCKETS_OF.replace('since', 'day_since').replace('until', 'day_until')}) b"
        " WHERE speed > 1 GROUP BY vin HAVING count(*) > 60",
        """SELECT f.vin FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id)
           WHERE f.fleet = %(fleet)s AND d.day = %(day)s AND d.driving_s > 60 * 600""", differs=_BUCKET_OFF),
    Question("avg-vs-projected-fuel-consumption", "kWh/100 km used and certified, by fleet", 1,
        f"SELECT fleet, 100 * sum(kwh) / sum(km), sum(km * certified) / sum(km) FROM ({_USED}) s GROUP BY 1",
        """SELECT f.fleet, 100 * sum(d.consumption_kwh) / sum(d.consumption_km),
                  sum(d.consumption_km * f.certified_kwh_per_100km) / sum(d.consumption_km)
           FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id) GROUP BY 1"""),
    Question("avg-daily-driving-duration", "mean of a vehicle's driven hours a day (not floored)", 3,
        f"""SELECT fleet, model, vin, avg(hours) FROM (
                SELECT fleet, model, vin, (bucket AT TIME ZONE 'Asia/Shanghai')::date AS day,
                       count(*) FILTER (WHERE speed > 1) / 6.0 AS hours FROM ({_BUCKETS_ALL}) b GROUP BY 1, 2, 3, 4
            ) d GROUP BY 1, 2, 3""",
        """SELECT f.fleet, f.model, f.vin, avg(d.driving_s) / 3600
           FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id) GROUP BY 1, 2, 3""", differs=_BUCKET_OFF),
    Question("avg-daily-driving-session", "mean length in seconds of a vehicle's drives by the day they begin, "
        "those at either end of the data too", 2,
        f"SELECT vin, day, avg(seconds) FROM ({_RUNS.format(buckets=_BUCKETS_ALL, condition='speed > 5')}) r"
        " GROUP BY 1, 2",
        """SELECT f.vin, t.day, avg(extract(epoch FROM t.end_at - t.start_at))
           FROM trips t JOIN vehicle_facts f USING (vehicle_id) GROUP BY 1, 2""", differs=_BUCKET_OFF),
    Question("avg-load", "battery loads used a day without charging, mean over vehicle-days, by fleet and model", 2,
        f"""SELECT fleet, model, avg(loads) FROM (
                SELECT fleet, model, vin, day, coalesce(sum(kwh), 0) / min(battery_kwh) AS loads
                FROM ({_STEPS.replace('SELECT f.vin', 'SELECT (kw + kw_before) / 2 * dt / 3600 * (dt <= %(gap_s)s'
                ' AND NOT plugged AND NOT plugged_before)::integer AS kwh, f.vin', 1)}) s GROUP BY 1, 2, 3, 4
            ) d GROUP BY 1, 2""",
        """SELECT f.fleet, f.model, avg(d.consumption_kwh / f.battery_kwh)
           FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id) GROUP BY 1, 2"""),
    Question("daily-activity", "vehicle-days in buckets whose mean alarm level is below 1, by day, fleet and model "
        "(buckets are counted, not rows)", 3,
        f"""SELECT (bucket AT TIME ZONE 'Asia/Shanghai')::date, fleet, model, count(*) / 144.0
            FROM ({_BUCKETS_ALL}) b WHERE level < 1 GROUP BY 1, 2, 3""",
        """SELECT d.day, f.fleet, f.model, sum(d.covered_s - d.alarm_s) / 86400
           FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id) GROUP BY 1, 2, 3""", differs=_BUCKET_OFF),
    Question("breakdown-frequency", "breakdowns by model: half of a bucket's reports or more at alarm level "
        "2 or higher, the bucket before not so", 1,
        f"""SELECT model, count(*) FROM (
                SELECT model, bucket - lag(bucket) OVER (PARTITION BY vehicle_id ORDER BY bucket)
                              IS DISTINCT FROM interval '10 minutes' AS begins
                FROM ({_BUCKETS_ALL}) b WHERE broken >= 0.5) r WHERE begins GROUP BY 1""",
        """SELECT f.model, count(*) FROM alarm_episodes e JOIN vehicle_facts f USING (vehicle_id)
           WHERE e.source = 1 AND e.level >= 2 GROUP BY 1"""),
    Question("last-location", "newest position of all vehicles", 1,
        _of_newest(_AT, ""), _of_state(_AT, ""), tsbs=False),
    Question("low-soc", "newest SOC below 20 %", 1,
        _of_newest(", n.soc_pct", "WHERE n.soc_pct < 20"), _of_state(", n.soc_pct", "WHERE n.soc_pct < 20"),
        tsbs=False),
    Question("parked-and-charging", "newest report charges while parked", 1,
        _of_newest(", n.soc_pct", "WHERE n.charge_state = 1"), _of_state(", n.soc_pct", "WHERE n.charge_state = 1"),
        tsbs=False),
    Question("cell-imbalance", "days on which the cells of a report were 80 mV apart or more", 2,
        """SELECT f.vin, t.day, t.mv FROM (
               SELECT vehicle_id, (time AT TIME ZONE 'Asia/Shanghai')::date AS day,
                      max(round((cell_max_v::float8 - cell_min_v::float8) * 1000)) AS mv FROM telemetry GROUP BY 1, 2
           ) t JOIN vehicle_facts f USING (vehicle_id) WHERE t.mv >= 80""",
        """SELECT f.vin, d.day, round(d.cell_range_max_mv) FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id)
           WHERE round(d.cell_range_max_mv) >= 80""", tsbs=False),
    Question("long-driving", "drives of more than two hours without a stop of five minutes: vehicle, local day of "
        "begin, how many", 2,
        """SELECT f.vin, (begin AT TIME ZONE 'Asia/Shanghai')::date, count(*) FROM (
               SELECT vehicle_id, min(time) AS begin, max(time) - min(time) AS length FROM (
                   SELECT vehicle_id, time,
                          count(*) FILTER (WHERE apart) OVER (PARTITION BY vehicle_id ORDER BY time) AS n
                   FROM (SELECT vehicle_id, time, time - lag(time) OVER (PARTITION BY vehicle_id ORDER BY time)
                                >= interval '300 seconds' AS apart FROM telemetry WHERE speed_kmh > 0) a
               ) b GROUP BY vehicle_id, n
           ) s JOIN vehicle_facts f USING (vehicle_id) WHERE length > interval '2 hours' GROUP BY 1, 2""",
        """SELECT f.vin, t.day, count(*) FROM trips t JOIN vehicle_facts f USING (vehicle_id)
           WHERE t.end_at - t.start_at > interval '2 hours' GROUP BY 1, 2""", tsbs=False),
    Question("energy-against-certified", "kWh/100 km over certified, by model", 1,
        f"SELECT model, sum(kwh) / sum(km) * 100 / min(certified) - 1 FROM ({_USED}) s GROUP BY 1",
        """SELECT f.model, sum(d.consumption_kwh) / sum(d.consumption_km) * 100 / min(f.certified_kwh_per_100km) - 1
           FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id) GROUP BY 1""", tsbs=False),
    Question("weak-insulation", "days with insulation below 500 Ω/V: vehicle, day, lowest", 2,
        """SELECT f.vin, t.day, t.least FROM (
               SELECT vehicle_id, (time AT TIME ZONE 'Asia/Shanghai')::date AS day,
                      min(insulation_resistance_kohm * 1000.0::float8 / total_voltage_v) AS least
               FROM telemetry WHERE total_voltage_v >= 60 GROUP BY 1, 2
           ) t JOIN vehicle_facts f USING (vehicle_id) WHERE t.least < 500""",
        """SELECT f.vin, d.day, d.insulation_min_ohm_per_v FROM vehicle_day d JOIN vehicle_facts f USING (vehicle_id)
           WHERE d.insulation_min_ohm_per_v < 500""", tsbs=False),
    Question("alarm-frequency", "episodes of standard flags by model and flag", 2,
        """SELECT f.model, bit, count(*) FROM (
               SELECT vehicle_id, bit, time - lag(time) OVER (PARTITION BY vehicle_id, bit ORDER BY time) AS since
               FROM telemetry CROSS JOIN generate_series(0, 31) AS bit
               WHERE alarm_flags <> 0 AND alarm_flags >> bit & 1 = 1
           ) t JOIN vehicle_facts f USING (vehicle_id) WHERE since IS NULL OR since > interval '120 seconds'
           GROUP BY 1, 2""",
        """SELECT f.model, e.code, count(*) FROM alarm_episodes e JOIN vehicle_facts f USING (vehicle_id)
           WHERE e.source = 1 GROUP BY 1, 2""", tsbs=False),
)  # fmt: skip
