"""Parts of an answer about a battery, each from the rows that it is made of. Pure, but for the registry's gaps.

What cannot be said is null, and the reason beside it. Section numbers are of the project's statistics rules.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date
from statistics import median
from typing import Any, Final

from schemas.statistics import figures, rules
from schemas.statistics.measures import range_quantile_mv
from services.web.exports import Column
from services.web.parameters import Context
from services.web.vehicle_answers import Subject, rounded

MONTH_CHARGES_MIN: Final = 3  # 4.5
LINE_CHARGES_MIN, LINE_KM_MIN = 5, 1_000.0  # below either a line says more of the charges' scatter than of age [P]

_D, _I = "double precision", "bigint"

MONTHS: Final = (
    Column("month", "date", "", "its first day, local"),
    Column("charges", _I, "", "charges that allow a capacity: 30 points of SOC, 95 % coverage, 10 °C (4.5) [P]"),
    Column("capacity_ah", _D, "Ah", "median of these charges; at least three of them"),
    Column("p25_ah", _D, "Ah", "25 % quantile"),
    Column("p75_ah", _D, "Ah", "75 % quantile"),
    Column("error_ah", _D, "Ah", "half width of about 95 %: scatter of the charges and whole-number SOC"),
    Column("soh_pct", _D, "%", "capacity_ah ÷ the reference of `soh`; not clipped at 100"),
    Column("odometer_km", _D, "km", "median odometer of these charges"),
)
SPREADS: Final = (
    Column("day", "date", "", "local day"),
    *(
        Column(f"range_{when}_{quantile}_mv", _D, "mV", f"{quantile} of the range between cells {words}")
        for when, words in (("rest", "at rest (|I| < 2 A for 300 s)"), ("driving", "while driving"),
                            ("charge_end", "in the last 5 min of charges"))
        for quantile in ("p50", "p95")
    ),
    Column("cell_range_max_mv", _D, "mV", "largest range of one record"),
    Column("cell_rows", _I, "", "records usable for cells (at most 5 missing)"),
)  # fmt: skip
OUTLIERS: Final = (
    Column("cell", _I, "", "its number"),
    Column("persistent", "bool", "", "outlier by z or robust z in half of the usable rows of 3 days, 10 mV off [P]"),
    Column("days_z", _I, "", "days on which |z| > 3 in half of the usable rows; needs 11 cells"),
    Column("days_robust", _I, "", "the same by median and MAD: two bad cells do not mask each other"),
    Column("deviation_mv", _D, "mV", "median over these days of its distance from the cells' median"),
    Column("days", _I, "", "days on which it was found at all"),
    Column("first_day", "date", "", "first of them in the range"),
    Column("last_day", "date", "", "last of them"),
)
RESISTANCES: Final = (
    Column("month", "date", "", "its first day, local"),
    Column("temp_class_c", _I, "°C", "from here to 5 °C more; compare within a class only (4.11)"),
    Column("median_mohm", _D, "mΩ", "of the pack: median of the days' medians, weighted by samples; a trend only"),
    Column("samples", _I, "", "steps of 30 A and more"),
    Column("days", _I, "", "days with such steps"),
    Column("soc_mean_pct", _D, "%", "mean SOC of the samples"),
    Column("temp_mean_c", _D, "°C", "their mean temperature"),
)
RESTS: Final = (
    Column("cell", _I, "", "the cell that fell most"),
    Column("warning", "bool", "", "5 mV a day beyond the other cells in 3 rests (4.12) [P]"),
    Column("rests", _I, "", "rests of 6 h and more in which it was that cell"),
    Column("rests_beyond", _I, "", "of these, with 5 mV a day and more beyond the cells' median"),
    Column("excess_median_mv_per_day", _D, "mV/d", "median of its fall beyond the cells' median"),
    Column("excess_max_mv_per_day", _D, "mV/d", "largest of them"),
    Column("last_rest_at", "time", "", "begin of the last of these rests"),
)
INSULATIONS: Final = (
    Column("day", "date", "", "local day"),
    Column("insulation_min_kohm", _D, "kΩ", "lowest of the day"),
    Column("insulation_min_ohm_per_v", _D, "Ω/V", "lowest per volt, pack at 60 V or more"),
)
TABLES: Final[Mapping[str, Sequence[Column]]] = {
    "capacity": MONTHS,
    "spread": SPREADS,
    "outliers": OUTLIERS,
    "resistance": RESISTANCES,
    "self_discharge": RESTS,
    "insulation": INSULATIONS,
}


# -- capacity ----------------------------------------------------------------------------------------
def reference_of(of: Subject, charges: Sequence[Mapping[str, Any]]) -> tuple[float | None, str | None]:
    """What 100 % is: the rated capacity, or the median of the first ten accepted charges (4.5)."""
    rated = of.fact("battery_ah")
    if rated is not None:
        return float(rated), "rated"
    of.lacks("battery_ah", "SOH and equivalent cycles against the rated capacity")
    if len(charges) >= figures.BASELINE_CHARGES:
        return median(row["capacity_ah"] for row in charges[: figures.BASELINE_CHARGES]), "baseline_relative"
    return None, None


def _rise(row: Mapping[str, Any]) -> float:
    start, end = row["start_soc_pct"], row["end_soc_pct"]
    return 0.0 if start is None or end is None else float(end - start)


def line_of(charges: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """The robust line of capacity against odometer, slope per 10,000 km; None of less than 5 charges or 1,000 km."""
    known = [row for row in charges if row["odometer_km"] is not None]
    span = [row["odometer_km"] for row in known]
    if len(known) < LINE_CHARGES_MIN or max(span) - min(span) < LINE_KM_MIN:
        return None
    line = figures.theil_sen([row["odometer_km"] for row in known], [row["capacity_ah"] for row in known])
    if line is None:
        return None
    return {
        "at_zero_ah": rounded(line.at_zero),
        "slope_ah_per_10000km": rounded(line.slope * 1e4, 6),
        "slope_low": rounded(None if line.low is None else line.low * 1e4, 6),
        "slope_high": rounded(None if line.high is None else line.high * 1e4, 6),
        "charges": line.points,
        "odometer_from_km": min(span),
        "odometer_to_km": max(span),
    }


def months_of(
    stored: Sequence[Mapping[str, Any]], charges: Sequence[Mapping[str, Any]], reference: float | None, ctx: Context
) -> list[dict[str, Any]]:
    by_month: dict[date, list[Mapping[str, Any]]] = defaultdict(list)
    for row in charges:
        by_month[row["start_at"].astimezone(ctx.zone).date().replace(day=1)].append(row)
    found = []
    for row in stored:
        mine = by_month[row["month"]]
        spread = figures.capacity_of([each["capacity_ah"] for each in mine], [_rise(each) for each in mine])
        soh = figures.ratio(row["capacity_ah"], reference)
        found.append(
            {
                **{column.name: row.get(column.name) for column in MONTHS},
                "error_ah": rounded(spread.error_ah) if spread else None,
                "soh_pct": rounded(None if soh is None else 100.0 * soh, 3),
            }
        )
    return found


def soh_of(months: Sequence[Mapping[str, Any]], reference: float | None, method: str | None) -> dict[str, Any]:
    """Health as of the last month with enough charges, never clipped (4.5)."""
    last = months[-1] if months else None
    why = None
    if last is None:
        why = f"no month has {MONTH_CHARGES_MIN} charges that allow a capacity (30 points of SOC, 95 % coverage, 10 °C)"
    elif reference is None:
        why = (
            f"the rated capacity is not known, and there are fewer than {figures.BASELINE_CHARGES} charges to stand in"
        )
    error = figures.ratio(last["error_ah"], reference) if last else None
    return {
        "soh_pct": None if last is None else last["soh_pct"],
        "error_pct": rounded(None if error is None else 100.0 * error, 3),
        "method": method,
        "reference_ah": rounded(reference),
        "month": last["month"] if last else None,
        "charges": last["charges"] if last else None,
        "why_not": why,
    }


# -- cells, resistance, rests, insulation ------------------------------------------------------------
def window_of(days: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    """Quantiles of all records of the range: the days' histograms added."""
    tallies = [row[name] for row in days if row[name]]
    counts = [sum(column) for column in zip(*tallies, strict=True)]
    return {
        "p50_mv": range_quantile_mv(counts, 0.5) if counts else None,
        "p95_mv": range_quantile_mv(counts, 0.95) if counts else None,
        "records": sum(counts),
    }


def outliers_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Cells that were found as outliers, the most persistent first (4.7)."""
    by_cell: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_cell[row["cell"]].append(row)
    found = []
    for cell, mine in by_cell.items():
        by = [
            [figures.outlier_day(row[name], row["usable_rows"], row["deviation_mv"]) for row in mine]
            for name in ("z_rows", "robust_rows")
        ]
        z, robust = map(sum, by)
        found.append(
            {
                "cell": cell,
                "persistent": sum(map(any, zip(*by, strict=True))) >= figures.OUTLIER_DAYS,
                "days_z": z,
                "days_robust": robust,
                "deviation_mv": rounded(
                    median([row["deviation_mv"] for row in mine if row["deviation_mv"] is not None] or [0.0])
                ),
                "days": len(mine),
                "first_day": mine[0]["day"],
                "last_day": mine[-1]["day"],
            }
        )
    return sorted(found, key=lambda row: (-max(row["days_z"], row["days_robust"]), -row["days"], row["cell"]))


def weighted_median(values: Sequence[float], weights: Sequence[float]) -> float:
    """The first value, in order, at which half of the weight is reached."""
    half, seen = sum(weights) / 2, 0.0
    for value, weight in sorted(zip(values, weights, strict=True)):
        seen += weight
        if seen >= half:
            return value
    raise AssertionError("there is a value")


def resistances_of(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By month and class of temperature (4.11)."""
    groups: dict[tuple[date, int], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        if row["samples"] and row["median_mohm"] is not None:
            groups[row["day"].replace(day=1), row["temp_class_c"]].append(row)
    found = []
    for (month, temp_class), mine in sorted(groups.items()):
        samples = sum(row["samples"] for row in mine)
        means = {
            name: sum(row[name] * row["samples"] for row in mine if row[name] is not None) / samples
            for name in ("soc_mean_pct", "temp_mean_c")
        }
        found.append(
            {
                "month": month,
                "temp_class_c": temp_class,
                "median_mohm": rounded(
                    weighted_median([row["median_mohm"] for row in mine], [row["samples"] for row in mine])
                ),
                "samples": samples,
                "days": len(mine),
                **{name: rounded(value, 2) for name, value in means.items()},
            }
        )
    return found


def rests_of(rows: Sequence[Mapping[str, Any]], ctx: Context) -> list[dict[str, Any]]:
    """Cells that lose charge by themselves, those with a warning first (4.12)."""
    by_cell: dict[int, list[tuple[float, Mapping[str, Any]]]] = defaultdict(list)
    for row in rows:
        if row["drop_mv_per_day"] is not None and row["median_drop_mv_per_day"] is not None:
            by_cell[row["cell"]].append((row["drop_mv_per_day"] - row["median_drop_mv_per_day"], row))
    found = []
    for cell, mine in by_cell.items():
        excess = [value for value, _ in mine]
        beyond = sum(value >= figures.SELF_DISCHARGE_MV_PER_DAY for value in excess)
        found.append(
            {
                "cell": cell,
                "warning": beyond >= figures.SELF_DISCHARGE_RESTS,
                "rests": len(mine),
                "rests_beyond": beyond,
                "excess_median_mv_per_day": rounded(median(excess)),
                "excess_max_mv_per_day": rounded(max(excess)),
                "last_rest_at": ctx.local(mine[-1][1]["start_at"]),
            }
        )
    return sorted(found, key=lambda row: (-row["rests_beyond"], -row["rests"], row["cell"]))


_INSULATION_TEXTS: Final[Mapping[figures.Insulation, str]] = {
    figures.Insulation.GOOD: "no value below 500 Ω/V has held for 3 records or 30 s",
    figures.Insulation.WARNING: "below 500 Ω/V, the floor where an AC circuit is conductively joined [A]",
    figures.Insulation.FAULT: "below 100 Ω/V, the floor of a DC circuit [A]",
    figures.Insulation.NOT_MEASURED: "always the field's maximum, or one constant value: reported, not rated",
    figures.Insulation.NO_DATA: "no insulation resistance was reported, or the pack is under 60 V",
}


def insulation_of(
    days: Sequence[Mapping[str, Any]], episodes: Sequence[Mapping[str, Any]], ctx: Context
) -> dict[str, Any]:
    """The floor and a verdict; a value counts only when it has held, which the alarm rules have watched (4.9)."""
    known = [row for row in days if row["insulation_min_kohm"] is not None]
    per_v = [row["insulation_min_ohm_per_v"] for row in known if row["insulation_min_ohm_per_v"] is not None]
    held = [
        row
        for row in episodes
        if row["source"] == rules.SOURCE_RULE and row["code"] in (rules.INSULATION_LOW, rules.INSULATION_FAULT)
    ]
    if not per_v:
        verdict = figures.Insulation.NO_DATA
    elif not figures.insulation_measured([row["insulation_min_kohm"] for row in known]):
        verdict = figures.Insulation.NOT_MEASURED
    elif any(row["code"] == rules.INSULATION_FAULT for row in held):
        verdict = figures.Insulation.FAULT
    else:
        verdict = figures.Insulation.WARNING if held else figures.Insulation.GOOD
    alarmed = {row["day"] for row in held}
    dips = [
        row
        for row in known
        if figures.insulation_verdict(row["insulation_min_ohm_per_v"])
        in (figures.Insulation.WARNING, figures.Insulation.FAULT)
        and row["day"] not in alarmed
    ]
    return {
        "verdict": verdict.value,
        "text": _INSULATION_TEXTS[verdict],
        "lowest_kohm": min((row["insulation_min_kohm"] for row in known), default=None),
        "lowest_ohm_per_v": min(per_v, default=None),
        "held": [
            {
                "episode_id": row["episode_id"],
                "rule": rules.RULE[row["code"]].name,
                "start_at": ctx.local(row["start_at"]),
                "end_at": ctx.local(row["end_at"]),
                "lowest_ohm_per_v": row["value_min"],
                "settled": row["settled_on"] is not None,
            }
            for row in held
        ],
        "days_with_dips": len(dips),
        "days": [{column.name: row[column.name] for column in INSULATIONS} for row in known],
    }
