"""TSBS's iot questions and their NEV twins: how long plain SQL over telemetry takes, how long ours, if right.

A seeded fleet (``questions_data``) goes through journal, pipeline and statistics of a whole system: 5 % late, 3 %
twice, outages reissued.  Then every question is asked both ways, with several sets of parameters, and both answers are
compared with what NumPy counts over the values that were sent (``questions_oracle``).
"""

from __future__ import annotations

import asyncio
import time
from statistics import median
from typing import Any, Final

import psycopg

from benchmarks import questions_data as data
from benchmarks.questions_oracle import Answers, Oracle, Truth, answers, differences, parameters
from benchmarks.questions_sql import QUESTIONS, Question
from benchmarks.runner import Progress
from benchmarks.truth import _until as until
from benchmarks.truth import system as whole_system
from services.journal.postgres import PostgresJournal

SEED: Final = 4
QUICK: Final = {"vehicles": 60, "days": 3, "period_s": 30}
FULL: Final = {"vehicles": 300, "days": 7, "period_s": 30}


def run(quick: bool, progress: Progress) -> dict[str, Any]:
    """``questions`` by name: p50_ms and p95_ms of both ways, their ratio, rows, how far ours may be and is off."""
    size = QUICK if quick else FULL
    fleet = data.make(**size, seed=SEED)
    progress(f"{len(fleet.time):,} reports of {size['vehicles']} vehicles and {size['days']} days made")
    with (
        whole_system(progress, journal={"partitions": 4}) as system,
        psycopg.connect(system.dsn, autocommit=True) as db,
    ):
        seconds = _through(db, system.dsn, fleet)
        progress(f"stored, with statistics, in {seconds:.0f} s")
        db.execute("VACUUM ANALYZE")
        asked = [parameters(fleet, SEED + n) for n in range(5 if quick else 10)]
        found = {question.name: _asked(db, fleet, question, asked, progress) for question in QUESTIONS}
    ratios = [each["ratio"] for each in found.values()]
    return {
        "ours_p95_ms_max": max(each["ours"]["p95_ms"] for each in found.values()),
        "ratio_median": round(median(ratios), 1),
        "ratio_min": min(ratios),
        "wrong": sum(each["wrong"] for each in found.values()),
        "rows": len(fleet.time),
        "stored_with_statistics_s": round(seconds, 1),
        "questions": found,
        "goals": {"wrong": 0},
        "settings": size | {"seed": SEED, "late": 0.05, "twice": 0.03, "outages_per_vehicle": 1, "asked": len(asked)},
    }


def _through(db: psycopg.Connection[Any], dsn: str, fleet: data.Fleet) -> float:
    data.register(db, fleet)
    begun = time.monotonic()

    async def journaled() -> None:
        journal = PostgresJournal(dsn, 4)
        await journal.open()
        for records in data.frames(fleet, SEED, pieces=40):
            await journal.append(records)
        await journal.close()

    asyncio.run(journaled())

    def count(query: str) -> int:
        row = db.execute(query.encode()).fetchone()
        assert row is not None
        return int(row[0])

    # As truth.py waits: until the number is there, or does not move any more.
    until("rows", lambda: count("SELECT coalesce(sum(rows), 0)::bigint FROM ledger"), len(fleet.time))
    return until("statistics", lambda: count("SELECT count(*) FROM statistics_changes"), 0) - begun


def _asked(
    db: psycopg.Connection[Any], fleet: data.Fleet, question: Question, asked: list[dict[str, Any]], progress: Progress
) -> dict[str, Any]:
    truths = [Oracle(fleet, given).answer(question.name) for given in asked]
    found: dict[str, Any] = {
        "reading": question.reading,
        "tsbs": question.tsbs,
        "wrong": 0,
        "ours_may_be_off": question.differs,
    }
    for way, text in (("plain", question.plain), ("ours", question.ours)):
        spent, off = [], 0.0
        for repeat in range(2):  # the first fills caches
            for given, true in zip(asked, truths, strict=True):
                begun = time.perf_counter()
                rows = db.execute(text.encode(), given).fetchall()
                if repeat:
                    spent.append(1000 * (time.perf_counter() - begun))
                    got = answers(rows, question.keys)
                    wrong = differences(got, true, ours=way == "ours")
                    found["wrong"] += len(wrong)
                    off = max(off, _off(got, true))
                    for line in wrong[:3]:
                        progress(f"{question.name}, {way}: {line}")
        spent.sort()
        found[way] = {
            "p50_ms": round(median(spent), 2), "p95_ms": round(spent[max(0, round(0.95 * len(spent)) - 1)], 2),
            "off_max": round(float(off), 6),
        }  # fmt: skip
    found["answers"] = sum(len(true.rows) for true in truths)
    found["slack_max"] = round(max((s for true in truths for s in true.slack.values()), default=0.0), 4)
    found["doubtful"] = sum(len(true.doubtful) for true in truths)
    found["ratio"] = round(found["plain"]["p50_ms"] / found["ours"]["p50_ms"], 1)
    progress(f"{question.name}: plain {found['plain']['p50_ms']} ms, ours {found['ours']['p50_ms']} ms")
    return found


def _off(got: Answers, true: Truth) -> float:
    """The largest difference of a value."""
    return max(
        (abs(a - b) for key in got.keys() & true.rows.keys() for a, b in zip(got[key], true.rows[key], strict=True)),
        default=0.0,
    )
