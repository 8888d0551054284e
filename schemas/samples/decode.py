"""JSON samples to columns: the same lines of a ``Batch`` that the frames of GB/T 32960 become.

Each sample is parsed once by orjson; its scalars then travel in flat lists that numpy judges for the whole batch at
once.  Python touches a value only when it is wrong, unknown, or in a list of packs.  A field that is wrong is
masked and named under ``_flaws`` in ``extra`` with its JSON path; only a sample that cannot be read or placed in
time is refused.  What a sample becomes must depend on nothing but its own bytes, its vehicle and its topic: not on
the array it came in, nor on its neighbours.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Any, Final

import numpy as np
import orjson

from schemas import batch as b
from schemas.batch import I64, VIN_BYTES, Batch, Codec, Frames
from schemas.reasons import CODE
from schemas.samples import fields as f
from schemas.samples.lists import Lists
from schemas.samples.split import BAD, BEGIN, COLUMNS, END, LIMIT, OFFSET, PAYLOAD, STATUS, Limits, digests, split
from schemas.signals import INDEX, SIGNALS, State

FLAWS_KEY: Final = "_flaws"
EDITION: Final = 0  # of no edition of GB/T 32960; the lists are laid out as in the newest, 2025
# Telemetry comes behind bms, so that of the samples of one second the one with the vehicle's signals is the newest.
PART: Final[Mapping[int, int]] = {Codec.JSON_BMS: 0, Codec.JSON_TELEMETRY: 1}
JSON_CODECS: Final = (Codec.JSON_TELEMETRY, Codec.JSON_BMS)

_FLAWS_MAX: Final = 50  # named per sample; the rest is counted
_SHAPES_MAX: Final = 2000
_VALUES_AT_ONCE: Final = 10_000  # as Python objects: more of them leave the processor's cache
_TIME_S_END: Final = 7_258_118_400  # 2200, as everywhere
_POSITION_BITS: Final = 22
_SORTED: Final = orjson.OPT_SORT_KEYS
_BAD_JSON: Final = CODE["bad_json"]
_JSON_LIMIT: Final = CODE["json_limit"]
_FOREIGN_VIN: Final = CODE["foreign_vin"]
_CLOCKS: Final = (CODE["clock_future"], CODE["clock_past"])
_REASON_OF: Final = {BAD: _BAD_JSON, LIMIT: _JSON_LIMIT}
_REPORT: Final = f.KINDS["realtime"]

_VALID, _INVALID, _OUT = int(State.VALID), int(State.INVALID), int(State.OUT_OF_RANGE)
_NUMBERS: Final = {int, float}

Apply = Callable[[Mapping[str, Any]], dict[str, Any]]  # schemas.custom.jsonfields.JsonFields.apply


@dataclass(slots=True)
class Samples:
    """The JSON lines of a batch: line (m,), status and offset (m,) of ``split``; vin_at (frames,) byte of the VIN."""

    line: I64
    status: I64
    offset: I64
    vin_at: I64


def split_payloads(frames: Frames, limits: Limits, vin_offset: int) -> tuple[Frames, Samples]:
    """``frames`` with a line for each sample, its bytes those of the sample alone; and which lines those are.

    Lines keep their order; those of other codecs stay as they are, their VIN at ``vin_offset``.  A sample's
    position tells it from the others of its payload: position of the payload + number of the sample · 2**22.
    """
    wanted = np.isin(frames.codec, JSON_CODECS) & (frames.reason == 0)
    payloads = np.flatnonzero(wanted)
    refused_json = np.isin(frames.codec, JSON_CODECS) & ~wanted
    if not len(payloads):
        vin_at = frames.start + np.where(refused_json, 0, vin_offset)
        none = np.zeros(0, np.int64)
        return frames, Samples(none, none, none, vin_at)
    start = frames.start[payloads]
    table = _table(frames, start, start + frames.length[payloads], limits)
    per_payload = np.bincount(table[:, PAYLOAD], minlength=len(payloads))
    lines_of = np.ones(frames.n, np.int64)
    lines_of[payloads] = per_payload
    source_line = np.repeat(np.arange(frames.n), lines_of)
    first_of = np.cumsum(lines_of) - lines_of
    line = np.flatnonzero(wanted[source_line])
    number = np.arange(len(source_line)) - first_of[source_line]

    vin_at = frames.start[source_line] + np.where(wanted | refused_json, 0, vin_offset)[source_line]
    position = frames.position[source_line].astype(np.int64)
    position += np.where(position < 1 << _POSITION_BITS, number << _POSITION_BITS, 0)
    new_start, new_length = frames.start[source_line], frames.length[source_line]
    new_start[line] = table[:, BEGIN]
    new_length[line] = table[:, END] - table[:, BEGIN]
    taken = {
        name: getattr(frames, name)[source_line]
        for name in ("received_us", "door", "codec", "reason", "detail", "source", "partition", "offset")
    }
    spread = replace(frames, start=new_start, length=new_length, position=position.astype(np.int32), **taken)
    return spread, Samples(line, table[:, STATUS].copy(), table[:, OFFSET].copy(), vin_at)


def _table(frames: Frames, start: I64, end: I64, limits: Limits) -> I64:
    bounds = np.array([limits.depth_max, limits.samples_max, limits.values_max], np.int64)
    table = np.empty((2 * len(start) + 64, COLUMNS), np.int64)
    rows = int(split(frames.data, start, end, bounds, table))
    if rows > len(table):
        table = np.empty((rows, COLUMNS), np.int64)
        split(frames.data, start, end, bounds, table)
    return table[:rows]


# -- one batch -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Shape:
    """What to do with a sample that has these fields: ``signals`` of the scalars in order, the others by name."""

    signals: I64
    special: tuple[str, ...]


@dataclass(slots=True)
class Decoder:
    """Decodes the samples of batches, within ``limits``; keeps only the shapes that samples have had.

    ``apply`` says what becomes of fields that are not the catalogue's (a signals file), and ``mapped`` which of them
    have a meaning there; else they are kept as they are.
    """

    apply: Apply | None = None
    mapped: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    shapes: dict[tuple[str, ...], _Shape] = field(default_factory=dict)

    def decode(self, frames: Frames, samples: Samples, out: Batch) -> dict[tuple[str, str], int]:
        """Fill the lines of ``samples`` in ``out``; replaces ``frames.data`` by one that holds their lists, too.

        Returns flaws of the signals file's signals: (name, state) → times.
        """
        if not len(samples.line):
            return {}
        work = _Work(self, frames, samples, out)
        work.read()
        work.judge_scalars()
        work.put_lists()
        work.put_extra()
        return work.own_flaws

    def shape(self, names: tuple[str, ...]) -> _Shape:
        found = self.shapes.get(names)
        if found is None:
            if len(self.shapes) >= _SHAPES_MAX:
                self.shapes.clear()  # somebody invents names: begin again rather than grow
            signals = [INDEX[name] for name in names if name in INDEX]
            special = tuple(name for name in names if name not in INDEX)
            found = self.shapes[names] = _Shape(np.array(signals, np.int64), special)
        return found


class _Work:
    def __init__(self, decoder: Decoder, frames: Frames, samples: Samples, out: Batch) -> None:
        self.decoder, self.frames, self.samples, self.out = decoder, frames, samples, out
        self.values: list[Any] = []
        self.signals: list[I64] = []
        self.owners: list[int] = []
        self.cells, self.temps = Lists(cells=True), Lists(cells=False)
        self.unknown: dict[int, dict[str, Any]] = {}
        self.flaws: dict[int, dict[str, str]] = {}
        self.more: dict[int, int] = {}
        self.own_flaws: dict[tuple[str, str], int] = {}
        self.unfit: list[tuple[int, str]] = []

    # -- objects ---------------------------------------------------------------------------------------
    def read(self) -> None:
        """Parse every sample; collect its parts, its key and its canonical text."""
        frames, samples, out = self.frames, self.samples, self.out
        for k in np.flatnonzero(samples.status).tolist():
            self._refuse(int(samples.line[k]), _REASON_OF[int(samples.status[k])], int(samples.offset[k]))
        good = samples.line[samples.status == 0]
        if not len(good):
            return
        begins, ends = frames.start[good], frames.start[good] + frames.length[good]
        low = int(begins.min())
        raw = frames.data[low : int(ends.max())].tobytes()
        loads, dumps, shape_of = orjson.loads, orjson.dumps, self.decoder.shape
        shapes, values, owners, signals = self.decoder.shapes, self.values, self.owners, self.signals
        texts: list[bytes] = []
        seconds: list[int] = []
        taken_lines: list[int] = []
        lines = good.tolist()
        for line, begin, end in zip(lines, (begins - low).tolist(), (ends - low).tolist(), strict=True):
            try:
                sample = loads(raw[begin:end])
                text = dumps(sample, option=_SORTED)
            except ValueError:
                read = _tolerant(raw[begin:end])
                if isinstance(read, int):
                    self._refuse(line, _BAD_JSON, low + begin + read)
                    continue
                sample, text = read
            moment = sample.pop("time", None)
            second = moment // 1000 if type(moment) is int else _second_of(moment)
            if not 0 <= second < _TIME_S_END:
                self._refuse(line, _BAD_JSON, low + begin + offset_of(raw[begin:end], f.TIME))
                continue
            names = tuple(sample)
            shape = shapes.get(names) or shape_of(names)
            if shape.special and not self._take(line, sample, shape.special, begin + low):
                continue
            texts.append(text)
            seconds.append(second)
            owners.append(line)
            taken_lines.append(line)
            signals.append(shape.signals)
            values += sample.values()
            if len(values) > _VALUES_AT_ONCE:
                self.judge_scalars()
        taken = np.array(taken_lines, np.int64)
        out.kind[taken] = np.where(out.kind[taken] == 0, _REPORT, out.kind[taken])
        out.edition[taken] = EDITION
        out.time_s[taken] = seconds
        telemetry = frames.codec[taken] == Codec.JSON_TELEMETRY
        out.part[taken] = np.where(telemetry, PART[Codec.JSON_TELEMETRY], PART[Codec.JSON_BMS])
        keys = np.empty(len(taken), np.int64)
        bounds = np.zeros(len(taken) + 1, np.int64)
        np.cumsum([len(text) for text in texts], out=bounds[1:])
        digests(np.frombuffer(bytearray(b"".join(texts) or b"\0"), np.uint8), bounds, keys)
        out.digest[taken] = keys

    def _refuse(self, line: int, reason: int, at: int) -> None:
        """``at`` is a byte of the data; the letter's bytes are the VIN and the sample."""
        self.out.reason[line] = reason
        self.out.detail[line] = VIN_BYTES + at - int(self.frames.start[line])
        self.out.kind[line] = 0

    def _take(self, line: int, sample: dict[str, Any], special: tuple[str, ...], begin: int) -> bool:
        """Take what is no scalar signal out of ``sample``; False when it speaks for another vehicle."""
        unknown: dict[str, Any] = {}
        vin_at = int(self.samples.vin_at[line])
        lists: list[tuple[Lists, str, Any]] = []
        for name in special:
            value = sample.pop(name)
            if name == f.CELLS:
                lists.append((self.cells, name, value))
            elif name == f.TEMPS:
                lists.append((self.temps, name, value))
            elif name == f.KIND:
                if isinstance(value, str) and value in f.KINDS:
                    self.out.kind[line] = f.KINDS[value]
                elif value is not None:
                    self.flaw(line, "$.kind", "wrong_type" if not isinstance(value, str) else "unknown_kind")
            elif name == f.VIN:
                own = self.frames.data[vin_at : vin_at + VIN_BYTES].tobytes().rstrip(b"\0")
                if not isinstance(value, str) or value.encode() != own:
                    text = self.frames.data[begin : begin + int(self.frames.length[line])].tobytes()
                    self._refuse(line, _FOREIGN_VIN, begin + offset_of(text, f.VIN))
                    self._forget(line)
                    return False
            else:
                unknown[name] = value
        for where, name, value in lists:
            if value is not None:
                where.take(line, value, partial(self._flaw_below, line, f"$.{name}"))
        if unknown:
            self._keep(line, sample, unknown)
        return True

    def _forget(self, line: int) -> None:
        self.flaws.pop(line, None)
        self.more.pop(line, None)

    def _keep(self, line: int, sample: Mapping[str, Any], unknown: dict[str, Any]) -> None:
        """Fields that are not the catalogue's; those that mean one of its fields in another unit are flaws."""
        for name in [name for name in unknown if name not in self.decoder.mapped]:
            meant = f.meant_by(name)
            if not meant:
                continue
            value = unknown.pop(name)
            if value is None:
                continue
            self.flaw(line, path_of(name), "wrong_unit")
            for right in meant:
                if right in INDEX and right not in sample:
                    self.unfit.append((line, right))
        if unknown:
            self.unknown[line] = unknown

    def _flaw_below(self, line: int, above: str, path: str, word: str) -> None:
        self.flaw(line, above + path, word)

    def flaw(self, line: int, path: str, word: str) -> None:
        found = self.flaws.setdefault(line, {})
        if len(found) < _FLAWS_MAX:
            found[path] = word
        else:
            self.more[line] = self.more.get(line, 0) + 1

    # -- scalars ---------------------------------------------------------------------------------------
    def judge_scalars(self) -> None:
        """The scalars read so far, at once: to steps, in range or not."""
        values, out = self.values, self.out
        for unfit, name in self.unfit:
            if not out.reason[unfit]:
                out.state[unfit, INDEX[name]] = _INVALID
        if not values:
            return
        signal = np.concatenate(self.signals)
        line = np.repeat(np.array(self.owners, np.int64), [len(some) for some in self.signals])
        word: dict[int, str] = {}
        given = np.ones(len(values), bool)
        if not set(map(type, values)) <= _NUMBERS:
            for at, value in enumerate(values):
                if type(value) not in _NUMBERS:
                    values[at] = math.nan
                    if value is None:
                        given[at] = False
                    else:
                        word[at] = "wrong_type"
        number = np.array(values, np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            exact = number * f.DIV[signal]
            step = np.rint(exact)
            fits = (step >= f.LOW[signal]) & (step <= f.HIGH[signal])
            broken = f.WHOLE[signal] & (step != exact)
        finite = np.isfinite(number)
        state = np.where(fits & ~broken, _VALID, np.where(finite & ~broken, _OUT, _INVALID)).astype(np.uint8)
        for at in np.flatnonzero((state != _VALID) & given).tolist():
            default = "out_of_range" if state[at] == _OUT else "not_whole" if finite[at] else "not_finite"
            self.flaw(int(line[at]), f"$.{SIGNALS[int(signal[at])].name}", word.get(at, default))
        # the one unsigned signal is a DWORD in 32 bits
        num = np.where(state == _VALID, step, 0).astype(np.int64).astype(np.int32)
        line, signal = line[given], signal[given]
        out.num[line, signal] = num[given]
        out.state[line, signal] = state[given]
        for done in (self.values, self.signals, self.owners, self.unfit):
            done.clear()

    # -- lists -----------------------------------------------------------------------------------------
    def put_lists(self) -> None:
        """Bodies of the lists behind the frames' data, their spans in ``var``, and the signals that follow."""
        bodies: list[bytes] = []
        at = len(self.frames.data)
        for column, lists in ((b.CELLS, self.cells), (b.TEMPS, self.temps)):
            for line, body in lists.finish(self.out, self.flaw):
                self.out.var[line, column] = at, len(body)
                bodies.append(body)
                at += len(body)
        if bodies:
            self.frames.data = np.concatenate((self.frames.data, np.frombuffer(b"".join(bodies), np.uint8)))

    # -- extra -----------------------------------------------------------------------------------------
    def put_extra(self) -> None:
        """Unknown fields and flaws as ``extra``."""
        texts: list[bytes] = []
        at = len(self.out.extra_text)
        for line in sorted(self.unknown.keys() | self.flaws.keys()):
            unknown = self.unknown.get(line, {})
            apply = self.decoder.apply
            extra = apply(unknown) if apply is not None else {k: v for k, v in unknown.items() if k != FLAWS_KEY}
            flaws: dict[str, str] = extra.get(FLAWS_KEY, {})
            for name, word in flaws.items():
                self.own_flaws[name, word] = self.own_flaws.get((name, word), 0) + 1
            flaws = flaws | self.flaws.get(line, {})
            if line in self.more:
                flaws["$"] = f"and {self.more[line]} more"
            if flaws:
                extra[FLAWS_KEY] = flaws
            if not extra:
                continue
            text = orjson.dumps(extra)
            if b"\\u0000" in text:  # a jsonb of PostgreSQL cannot hold it
                text = orjson.dumps(_without_nul(extra))
            self.out.extra[line] = at, len(text)
            texts.append(text)
            at += len(text)
        if texts:
            more = np.frombuffer(b"".join(texts), np.uint8)
            self.out.extra_text = np.concatenate((self.out.extra_text, more))


def point_at_time(frames: Frames, samples: Samples, out: Batch) -> None:
    """Where a sample is refused for its clock, the offset is that of its time."""
    wrong = np.isin(out.reason[samples.line], _CLOCKS)
    for line in samples.line[wrong].tolist():
        out.detail[line] = VIN_BYTES + offset_of(frames.frame(line), f.TIME)


def letter_frame(frames: Frames, vin_at: int, line: int) -> bytes:
    """A sample's bytes behind its vehicle's VIN: what a dead letter of it keeps, a payload by itself."""
    start = int(frames.start[line])
    return frames.data[vin_at : min(vin_at + VIN_BYTES, start)].tobytes() + frames.frame(line)


# -- what is rare --------------------------------------------------------------------------------------

_WHOLE_DIGITS: Final = 18
_SURROGATE: Final = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


def _integer(text: str) -> int | float:
    return int(text) if len(text) <= _WHOLE_DIGITS else float(text)


def _tolerant(raw: bytes) -> tuple[dict[str, Any], bytes] | int:
    """A sample that orjson does not read: it may hold NaN, which is one field's trouble; else the byte of the error."""
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        return error.start
    try:
        sample = json.loads(text, parse_int=_integer)
    except json.JSONDecodeError as error:
        return len(text[: error.pos].encode())
    try:
        # NaN and infinities are null to orjson; here they stay apart, or samples would share a key that do not agree
        return sample, json.dumps(sample, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        found = _SURROGATE.search(raw)
        return found.start() if found else 0


def _second_of(moment: Any) -> int:
    """Seconds since 1970 of a time that is no whole number of milliseconds; -1 when it is no time."""
    if isinstance(moment, str):
        try:
            parsed = datetime.fromisoformat(moment)
        except ValueError:
            return -1
        if parsed.tzinfo is None:
            return -1
        try:
            return math.floor(parsed.replace(microsecond=0).timestamp())
        except (OverflowError, ValueError):
            return -1
    if isinstance(moment, float) and math.isfinite(moment):
        return math.floor(moment / 1000)
    return -1


def offset_of(sample: bytes, name: str) -> int:
    """Where ``name`` stands as a key in the bytes of a sample; 0 when it does not."""
    found = re.search(rb'"' + name.encode() + rb'"\s*:', sample)
    return found.start() if found else 0


_PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def path_of(name: str) -> str:
    """JSON path of a field of a sample."""
    return f"$.{name}" if _PLAIN.fullmatch(name) else f"$[{json.dumps(name, ensure_ascii=False)}]"


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\N{REPLACEMENT CHARACTER}")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_nul(inner) for inner in value]
    return value
