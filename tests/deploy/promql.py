"""Which metrics and labels a PromQL expression names, and which ones services/metrics.py has.

No parser of PromQL: what is not a selector is taken away, and what remains is read as selectors.  Syntax and types are
judged by promtool, where it is installed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from prometheus_client import Counter, Gauge, Histogram

from services import metrics

# of every scraped series, and of Prometheus itself
TARGET = frozenset({"job", "instance"})
FOREIGN = {"up": TARGET, "ALERTS": TARGET | {"alertname", "alertstate", "severity"}}

_STRING = r'"[^"]*"'
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]|\boffset\s+\w+")
_SELECTOR = re.compile(rf"(?<![\w$])([A-Za-z_:][\w:]*)\s*(\(|\{{(?:[^}}\"]|{_STRING})*\}})?")
_MATCHER = re.compile(rf"(\w+)\s*(=~|!~|!=|=)\s*({_STRING})")
_KEYWORDS = {"and", "or", "unless", "bool", "by", "without", "on", "ignoring", "inf", "nan"}


@dataclass
class Named:
    """``selectors``: (metric, {label: literals it is compared with}); ``grouped``: labels of by, on and the like."""

    selectors: list[tuple[str, dict[str, list[str]]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def named(expression: str) -> Named:
    found = Named()
    for labels in _GROUPING.findall(expression):
        found.grouped |= {label.strip() for label in labels.split(",") if label.strip()}
    rest = _RANGE.sub(" ", _GROUPING.sub(" ", expression))
    for match in _SELECTOR.finditer(rest):
        name, after = match[1], match[2] or ""
        if after == "(" or name.lower() in _KEYWORDS:
            continue
        compared = {label: value[1:-1].split("|") for label, _, value in _MATCHER.findall(after)}
        found.selectors.append((name, compared))
    return found


def exported() -> dict[str, frozenset[str]]:
    """Name of each series of services/metrics.py → its labels."""
    found: dict[str, frozenset[str]] = {}
    for metric in vars(metrics).values():
        if not isinstance(metric, (Counter, Gauge, Histogram)):
            continue
        name, labels = metric._name, frozenset(metric._labelnames) | TARGET
        if isinstance(metric, Counter):
            found[f"{name}_total"] = labels
        elif isinstance(metric, Histogram):
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name] = labels
    return found


def mistakes(expression: str, literals: str) -> list[str]:
    """What an expression names that is not there; ``literals``: the sources that a label's value must occur in."""
    known = exported() | FOREIGN
    found, wrong, labels = named(expression), [], set(TARGET)
    for metric, compared in found.selectors:
        if metric not in known:
            wrong.append(f"no metric {metric}")
            continue
        labels |= known[metric]
        wrong += [f"{metric} has no label {label}" for label in compared if label not in known[metric]]
        wrong += [
            f"nothing sets {label} of {metric} to {value!r}"
            for label, values in compared.items()
            for value in values
            if label not in TARGET and not value.startswith("$") and f'"{value}"' not in literals
        ]
    return wrong + [f"grouped by {label}, which no metric in it has" for label in sorted(found.grouped - labels)]
