"""Records of ``statistics_changes``: what a transaction has changed, told in that very transaction.

Whoever writes telemetry or logouts adds them, so that a retry of a batch leaves one set of records per commit, and
none without its rows.  It must never be written by another transaction than the one that changes the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import psycopg

from schemas.batch import I64, Changes, Login
from services.store import statements

SHARES: Final = 8  # vehicle_id % SHARES
LOGOUT: Final = 4
# A logout counts from the second after its own on: in its own the vehicle was still connected, and may have reported.
LOGOUT_AFTER_S: Final = 1

Entry = tuple[int, int, int]  # vehicle id, earliest and latest second


def logouts_of(logins: Iterable[Login]) -> list[Entry]:
    """The seconds at which vehicles logged out."""
    entries = []
    for login in logins:
        if login.command == LOGOUT and login.vehicle_id is not None:
            second = int(login.time.timestamp()) + LOGOUT_AFTER_S
            entries.append((login.vehicle_id, second, second))
    return entries


def write_changes(
    connection: psycopg.Connection[Any], fast: Changes | None, late: Sequence[Entry], urgent: I64 | None = None
) -> None:
    """Add the records of one transaction.

    ``fast``: rows written by COPY, ``late``: those merged, and logouts; ``urgent``: vehicles whose late rows are.
    """
    table = np.array(late, np.int64).reshape(-1, 3)
    hurried = np.isin(table[:, 0], urgent) if urgent is not None and len(urgent) else np.zeros(len(table), bool)
    if fast is not None and len(fast.vehicle_id):
        table = np.concatenate([np.stack([fast.vehicle_id, fast.from_s, fast.to_s], axis=1), table])
        hurried = np.concatenate([fast.urgent != 0, hurried])
    if not len(table):
        return
    group = (table[:, 0] % SHARES) * 2 + hurried
    order = np.argsort(group, kind="stable")
    groups, begins = np.unique(group[order], return_index=True)
    pieces = np.split(table[order], begins[1:])
    connection.execute(
        statements.INSERT_CHANGES,
        [
            [int(g) // 2 for g in groups], [bool(g % 2) for g in groups],
            *([piece[:, column].astype("<i8").tobytes() for piece in pieces] for column in range(3)),
        ],
    )  # fmt: skip
