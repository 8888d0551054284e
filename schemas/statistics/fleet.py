"""Answers of the fleet metrics, worked out from sums and distributions: pure functions, no data of their own.

What is not known is None: a rate without a denominator, a quantile of nothing, a figure whose inputs are not there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from schemas.statistics import cohorts, sketch
from schemas.statistics.cohorts import SPREAD, Spread
from schemas.statistics.metrics import Figure, Metric, evaluated
from schemas.statistics.rules import RULES, SOURCE_FLAG, SOURCE_RULE, flag_name

QUANTILES: Final = (("p5", 0.05), ("p25", 0.25), ("median", 0.5), ("p75", 0.75), ("p95", 0.95))
_NEWEST_EDITION: Final = 25  # the flags of 2016 are the first of these


def figure_rows(metric: Metric, sums: Mapping[str, float], spreads: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """One row a figure: name, unit, value, numerator, denominator, quantiles, histogram, and what each is of."""
    return [_row(metric, figure, sums, spreads) for figure in metric.figures]


def _row(metric: Metric, figure: Figure, sums: Mapping[str, float], spreads: Mapping[str, bytes]) -> dict[str, Any]:
    numerator = None if figure.numerator is None else _whole(evaluated(figure.numerator, sums))
    denominator = None if figure.denominator is None else _whole(evaluated(figure.denominator, sums))
    row: dict[str, Any] = {
        "figure": figure.name, "unit": figure.unit, "value": value_of(figure, numerator, denominator),
        "numerator": numerator, "denominator": denominator, "mean_of": figure.mean or None,
        **dict.fromkeys((name for name, _ in QUANTILES)), "quantiles_of": None, "counted": None, "histogram": None,
        "certainty": figure.tag or metric.tag, "text": figure.text,
    }  # fmt: skip
    if figure.spread is not None:
        spread = SPREAD[figure.spread]
        bins, counts = sketch.unpacked(spreads.get(figure.spread, b""))
        row["counted"], row["quantiles_of"] = int(counts.sum()), spread.over
        for name, share in QUANTILES:
            row[name] = _quantile(spread, bins, counts, share, figure.spread_offset)
        if figure.numerator is None and row["counted"]:
            values = np.array([_bin_value(spread, int(position)) for position in bins])
            row["value"] = float(values @ counts / counts.sum()) + figure.spread_offset
    if figure.histogram is not None:
        _histogram(figure, row, spreads)
    return row


def value_of(figure: Figure, numerator: float | None, denominator: float | None) -> float | None:
    if numerator is None:
        return None
    if figure.denominator is None:
        return _whole(figure.factor * numerator)
    if denominator is None or denominator <= 0 or denominator < figure.need:
        return None
    value = figure.factor * numerator / denominator + figure.offset
    return value if figure.least is None else max(figure.least, value)


def _whole(value: float) -> float:
    """Counts as whole numbers, whatever they were computed as."""
    return int(value) if float(value).is_integer() else float(value)


def _bin_value(spread: Spread, position: int) -> float:
    return sketch.value_of(position) if spread.bins == cohorts.LOG else float(position)


def _quantile(spread: Spread, bins: sketch.Counts, counts: sketch.Counts, share: float, offset: float) -> float | None:
    position = sketch.ranked(bins, counts, share)
    return None if position is None else _bin_value(spread, position) + offset


# -- histograms --------------------------------------------------------------------------------------
def _histogram(figure: Figure, row: dict[str, Any], spreads: Mapping[str, bytes]) -> None:
    assert figure.histogram is not None
    spread = SPREAD[figure.histogram]
    counts = _by_bin(spreads.get(figure.histogram, b""))
    total = sum(counts.values())
    if figure.against:
        whole: dict[int, int] = {}
        for name in figure.against:
            for position, count in _by_bin(spreads.get(name, b"")).items():
                whole[position] = whole.get(position, 0) + count
        row["histogram"] = _labelled(spread, counts, whole)
        if figure.histogram in figure.against:  # parts of a whole: they add up to one rate
            row["numerator"], row["denominator"] = total, sum(whole.values())
            row["value"] = 100.0 * total / row["denominator"] if row["denominator"] else None
        return
    row["counted"] = total
    row["quantiles_of"] = row["quantiles_of"] or None
    if spread.labels:
        of = counts.get(0, 0) if figure.of_first else total
        row["histogram"] = _labelled(spread, counts, dict.fromkeys(range(len(spread.labels)), of))
    elif spread.bins == cohorts.HOURS:
        row["histogram"] = [
            {"weekday": hour // 24 + 1, "hour": hour % 24, "count": counts.get(hour, 0),
             "share": _share(counts.get(hour, 0), total)}
            for hour in range(7 * 24)
        ]  # fmt: skip
    elif spread.bins == cohorts.POINTS:
        tens = [0] * 10
        for position, count in counts.items():
            tens[min(9, max(0, position // 10))] += count
        row["histogram"] = [
            {"from": 10 * k, "to": 10 * k + 10, "count": count, "share": _share(count, total)}
            for k, count in enumerate(tens)
        ]
    elif spread.bins == cohorts.CODES:
        row["histogram"] = [
            {**_code(position), "count": count, "share": _share(count, total)}
            for position, count in sorted(counts.items())
        ]
    else:
        row["histogram"] = [
            {"from": spread.first + spread.width * k, "to": spread.first + spread.width * (k + 1),
             "count": counts.get(k, 0), "share": _share(counts.get(k, 0), total)}
            for k in (range(min(counts), max(counts) + 1) if counts else ())
        ]  # fmt: skip


def _by_bin(data: bytes) -> dict[int, int]:
    bins, counts = sketch.unpacked(data)
    return dict(zip(bins.tolist(), counts.tolist(), strict=True))


def _share(count: int, total: int) -> float | None:
    return count / total if total else None


def _labelled(spread: Spread, counts: Mapping[int, int], of: Mapping[int, int]) -> list[dict[str, Any]]:
    return [
        {"name": name, "count": counts.get(k, 0), "of": of.get(k, 0), "share": _share(counts.get(k, 0), of.get(k, 0))}
        for k, name in enumerate(spread.labels)
    ]


_RULE_NAMES: Final = {rule.number: rule.name for rule in RULES}


def alarm_name(source: int, code: int) -> str:
    if source == SOURCE_FLAG:
        return flag_name(code, _NEWEST_EDITION)
    return _RULE_NAMES.get(code, f"rule_{code}") if source == SOURCE_RULE else f"source_{source}_{code}"


def _code(position: int) -> dict[str, Any]:
    source, code, level = cohorts.episode_of(position)
    kind = {SOURCE_FLAG: "flag", SOURCE_RULE: "rule"}.get(source, str(source))
    return {"source": kind, "code": code, "name": alarm_name(source, code), "level": level}
