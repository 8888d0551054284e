"""What a decoded report says against itself: cross-field checks, and its clock against its arrival.

A field that another one contradicts is marked ``SUSPECT`` and keeps its value; only a clock that is
off by more than the settings allow refuses the whole report.  Every check looks at the one frame
and its arrival time, never at other frames or at now: any order of the same frames, and any second
reading of them, gives the same answer.

:data:`CHECKS` (``schemas.checks``) is the list; the kernel walks it, and so can documentation.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from schemas.batch import CELLS, I16, I32, I64, TEMPS, U8, U32, Batch, Frames
from schemas.checks import CHECKS, Check, Lists, Rule
from schemas.jit import compiled, kernel
from schemas.reasons import CODE
from schemas.signals import INDEX, SIGNAL_COUNT, SIGNALS, State

STATES: Final = len(State)
REPORT, REISSUE = 2, 3
TIME_OFFSET: Final = 24  # of the collection time in a frame: where a clock error points to
_CLOCK_FUTURE: Final = CODE["clock_future"]
_CLOCK_PAST: Final = CODE["clock_past"]
_VALID, _SUSPECT = int(State.VALID), int(State.SUSPECT)
_ABSENT: Final = int(State.ABSENT)


# numba freezes plain module integers into the kernel
_ABOVE, _EXCEEDS, _DIFFERS = int(Rule.ABOVE), int(Rule.EXCEEDS), int(Rule.DIFFERS)
_CELLS, _ONE_PACK, _PROBES = int(Lists.CELLS), int(Lists.ONE_PACK), int(Lists.PROBES)

# Signals that the decoder computes from the lists: the fact that a check measures against, never the suspect.
_DERIVED: Final = frozenset(s.name for s in SIGNALS if s.text.endswith("(derived)"))

# One row per check, all integers, so that 5 mV is 5 steps and no rounding of 0.005 decides:
# rule, a, b, factor of a, factor of b, threshold, lists, condition signal, its value, mark a, mark b
_RULE, _A, _B, _FA, _FB, _THRESHOLD, _LISTS, _IF, _IF_VALUE, _MARK_A, _MARK_B = range(11)


def check_table(checks: tuple[Check, ...] = CHECKS) -> I64:
    """``checks`` as the integers that the kernel reads, (checks, 11) i64."""
    table = np.zeros((len(checks), 11), np.int64)
    for row, check in zip(table, checks, strict=True):
        a = INDEX[check.a]
        b = INDEX[check.b] if check.b else -1
        div_a = SIGNALS[a].div
        div_b = SIGNALS[b].div if b >= 0 else 1
        # both sides in units of 1 / (div_a * div_b)
        row[[_RULE, _A, _B, _FA, _FB]] = check.rule, a, b, div_b, div_a
        scale = 1 if check.rule == Rule.DIFFERS_PERMILLE else div_a * div_b
        row[_THRESHOLD] = round(check.threshold * scale)
        row[_LISTS] = check.lists
        row[_IF], row[_IF_VALUE] = (INDEX[check.only_if[0]], check.only_if[1]) if check.only_if else (-1, 0)
        row[_MARK_A] = check.a not in _DERIVED
        row[_MARK_B] = check.b is not None and check.b not in _DERIVED
    return table


# -- are the lists whole? ------------------------------------------------------------------------------
# The decoder's measure of a measurement: 1..60000 mV and raw 1..250; 0 and the sentinels are none. A count of
# 0xFE or 0xFF is no count, and no list follows it.


def _cells_complete_twin(data: U8, at: int, length: int, edition: int) -> bool:
    block = bytes(data[at : at + length])
    packs, rest = block[0], block[1:]
    if not 1 <= packs < 0xFE:
        return False
    for _ in range(packs):
        if len(rest) < (10 if edition == 16 else 7):
            return False
        if edition == 16:  # no, voltage, current, cells in the pack, first cell here, cells here
            total, first, here = int.from_bytes(rest[5:7], "big"), int.from_bytes(rest[7:9], "big"), rest[9]
            cells, rest = rest[10 : 10 + 2 * here], rest[10 + 2 * here :]
            if first != 1 or here != total or here >= 0xFE:
                return False
        else:  # no, voltage, current, cells
            here = int.from_bytes(rest[5:7], "big")
            cells, rest = rest[7 : 7 + 2 * here], rest[7 + 2 * here :]
        if len(cells) != 2 * here or any(
            int.from_bytes(cells[i : i + 2], "big") > 60000 for i in range(0, 2 * here, 2)
        ):
            return False
    return True


@compiled
def _cells_complete(data: U8, at: Any, length: Any, edition: Any) -> bool:
    end = at + length
    packs = data[at]
    at += 1
    if packs < 1 or packs >= 0xFE:
        return False
    for _ in range(packs):
        if edition == 16:
            if at + 10 > end:
                return False
            total = np.int64(data[at + 5]) << 8 | np.int64(data[at + 6])
            first = np.int64(data[at + 7]) << 8 | np.int64(data[at + 8])
            here = np.int64(data[at + 9])
            at += 10
            if first != 1 or here != total or here >= 0xFE:
                return False
        else:
            if at + 7 > end:
                return False
            here = np.int64(data[at + 5]) << 8 | np.int64(data[at + 6])
            at += 7
        if at + 2 * here > end:
            return False
        for i in range(here):
            cell = np.int64(data[at + 2 * i]) << 8 | np.int64(data[at + 2 * i + 1])
            if cell < 1 or cell > 60_000:
                return False
        at += 2 * here
    return True


def _probes_complete_twin(data: U8, at: int, length: int) -> bool:
    block = bytes(data[at : at + length])
    packs, rest = block[0], block[1:]
    if not 1 <= packs < 0xFE:
        return False
    for _ in range(packs):
        if len(rest) < 3:
            return False
        here = int.from_bytes(rest[1:3], "big")
        probes, rest = rest[3 : 3 + here], rest[3 + here :]
        if len(probes) != here or any(not 1 <= probe <= 250 for probe in probes):
            return False
    return True


@compiled
def _probes_complete(data: U8, at: Any, length: Any) -> bool:
    end = at + length
    packs = data[at]
    at += 1
    if packs < 1 or packs >= 0xFE:
        return False
    for _ in range(packs):
        if at + 3 > end:
            return False
        here = np.int64(data[at + 1]) << 8 | np.int64(data[at + 2])
        at += 3
        if at + here > end:
            return False
        for i in range(here):
            if data[at + i] < 1 or data[at + i] > 250:
                return False
        at += here
    return True


# -- the kernel ----------------------------------------------------------------------------------------


def _validate_twin(
    data: U8, received_us: I64, checks: I64, future_us: int, past_us: int, kind: U8, edition: U8, reason: U8,
    detail: U32, time_s: I64, part: I16, num: I32, state: U8, var: I64, counts: I64,
) -> None:  # fmt: skip
    for i in range(len(kind)):
        if kind[i] not in (REPORT, REISSUE) or reason[i] != 0:
            continue
        ahead_us = int(time_s[i]) * 1_000_000 - int(received_us[i])
        if ahead_us > future_us or -ahead_us > past_us:
            reason[i] = _CLOCK_FUTURE if ahead_us > future_us else _CLOCK_PAST
            detail[i] = TIME_OFFSET
            continue

        def known(signal: int, i: int = i) -> bool:
            return signal < 0 or state[i, signal] in (State.VALID, State.SUSPECT)

        for rule, a, b, factor_a, factor_b, threshold, lists, condition, wanted, mark_a, mark_b in checks.tolist():
            if not (known(a) and known(b) and known(condition)):
                continue
            if condition >= 0 and num[i, condition] != wanted:
                continue
            left = int(num[i, a]) * factor_a
            right = int(num[i, b]) * factor_b if b >= 0 else 0
            wrong = {
                Rule.ABOVE: left > threshold,
                Rule.EXCEEDS: left - right > threshold,
                Rule.DIFFERS: abs(left - right) > threshold,
                Rule.DIFFERS_PERMILLE: 1000 * abs(left - right) > threshold * abs(right),
            }[Rule(rule)]
            cells, probes = var[i, CELLS].tolist(), var[i, TEMPS].tolist()
            if lists in (Lists.CELLS, Lists.ONE_PACK):
                wrong = (
                    wrong
                    and part[i] == 0
                    and cells[1] > 0
                    and _cells_complete_twin(data, cells[0], cells[1], edition[i])
                )
            if lists == Lists.ONE_PACK:
                wrong = wrong and data[cells[0]] == 1
            if lists == Lists.PROBES:
                wrong = wrong and probes[1] > 0 and _probes_complete_twin(data, probes[0], probes[1])
            if wrong:
                for signal, marked in ((a, mark_a), (b, mark_b), (condition, condition >= 0)):
                    if marked:
                        state[i, signal] = State.SUSPECT
        for signal in range(SIGNAL_COUNT):
            counts[signal, state[i, signal]] += 1


@compiled
def _known(state: Any) -> bool:
    return state in (_VALID, _SUSPECT)


@kernel(twin=_validate_twin)
def _validate(
    data: U8, received_us: I64, checks: I64, future_us: int, past_us: int, kind: U8, edition: U8, reason: U8,
    detail: U32, time_s: I64, part: I16, num: I32, state: U8, var: I64, counts: I64,
) -> None:  # fmt: skip
    for i in range(len(kind)):
        if (kind[i] != REPORT and kind[i] != REISSUE) or reason[i] != 0:
            continue
        ahead_us = time_s[i] * 1_000_000 - received_us[i]
        if ahead_us > future_us:
            reason[i] = _CLOCK_FUTURE
            detail[i] = TIME_OFFSET
            continue
        if -ahead_us > past_us:
            reason[i] = _CLOCK_PAST
            detail[i] = TIME_OFFSET
            continue
        for c in range(len(checks)):
            a = checks[c, _A]
            b = checks[c, _B]
            condition = checks[c, _IF]
            if not _known(state[i, a]) or (b >= 0 and not _known(state[i, b])):
                continue
            if condition >= 0 and (not _known(state[i, condition]) or num[i, condition] != checks[c, _IF_VALUE]):
                continue
            left = np.int64(num[i, a]) * checks[c, _FA]
            right = np.int64(0)
            if b >= 0:
                right = np.int64(num[i, b]) * checks[c, _FB]
            rule = checks[c, _RULE]
            threshold = checks[c, _THRESHOLD]
            if rule == _ABOVE:
                wrong = left > threshold
            elif rule == _EXCEEDS:
                wrong = left - right > threshold
            elif rule == _DIFFERS:
                wrong = abs(left - right) > threshold
            else:
                wrong = 1000 * abs(left - right) > threshold * abs(right)
            if not wrong:
                continue
            # The lists are walked only now, when a value is already off: almost never.
            lists = checks[c, _LISTS]
            if lists in (_CELLS, _ONE_PACK):
                at = var[i, CELLS, 0]
                if part[i] != 0 or var[i, CELLS, 1] == 0 or (lists == _ONE_PACK and data[at] != 1):
                    continue
                if not _cells_complete(data, at, var[i, CELLS, 1], edition[i]):
                    continue
            if lists == _PROBES and (
                var[i, TEMPS, 1] == 0 or not _probes_complete(data, var[i, TEMPS, 0], var[i, TEMPS, 1])
            ):
                continue
            if checks[c, _MARK_A] != 0:
                state[i, a] = _SUSPECT
            if checks[c, _MARK_B] != 0:
                state[i, b] = _SUSPECT
            if condition >= 0:
                state[i, condition] = _SUSPECT
        for signal in range(SIGNAL_COUNT):
            counts[signal, state[i, signal]] += 1


_TABLE: Final = check_table()


def validate(frames: Frames, batch: Batch, clock_future_max_s: int, clock_past_max_days: int) -> I64:
    """Check every accepted report of ``batch``: sets ``reason`` and ``detail``, or marks ``state`` SUSPECT.

    Returns how often each signal of the reports that stand is in each state, (SIGNAL_COUNT, states) i64.
    """
    counts = np.zeros((SIGNAL_COUNT, STATES), np.int64)
    _validate(
        frames.data, frames.received_us, _TABLE, clock_future_max_s * 1_000_000, clock_past_max_days * 86_400_000_000,
        batch.kind, batch.edition, batch.reason, batch.detail, batch.time_s, batch.part, batch.num, batch.state,
        batch.var, counts,
    )  # fmt: skip
    return counts


def warm() -> None:
    """Compile this module's kernels."""
    batch = Batch.empty(1, 1)
    for array in (batch.kind, batch.reason):
        array[:] = 0
    nothing = np.zeros(1, np.int64)
    _validate(
        np.zeros(1, np.uint8), nothing, _TABLE, 0, 0, batch.kind, batch.edition, batch.reason, batch.detail,
        batch.time_s, batch.part, batch.num, batch.state, batch.var, np.zeros((SIGNAL_COUNT, STATES), np.int64),
    )  # fmt: skip
