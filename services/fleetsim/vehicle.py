"""Which vehicles a simulated fleet has: model catalogue, usage classes, cities, VINs.

Everything here is a table or a pure function of (seed, position in the fleet); nothing moves yet
(``physics``) and nothing is sent.  Vehicle ``i`` of a seed is the same car in a fleet of 10 and of
10,000.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from services.fleetsim.noise import normal, uniform

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]


class Usage(IntEnum):
    """What a vehicle is for; decides its day (``USAGES``, ``ACTIVITY``)."""

    PRIVATE = 0
    TAXI = 1
    BUS = 2
    LOGISTICS = 3


class Chemistry(IntEnum):
    """Cell chemistry; decides the open-circuit voltage curve (``physics.OCV_V``)."""

    LFP = 0
    NCM = 1


@dataclass(frozen=True, slots=True)
class VehicleModel:
    """One line of the catalogue.  ``edition`` is 16 or 25 (GB/T 32960 of 2016, 2025)."""

    name: str
    usage: Usage
    chemistry: Chemistry
    edition: int
    cells: int
    probes: int
    capacity_ah: float
    cell_resistance_mohm: float
    mass_kg: float
    rolling: float  # rolling resistance coefficient
    drag_area_m2: float
    auxiliary_kw: float
    motor_kw: float
    motor_nm: float
    rpm_per_kmh: float
    regeneration: float  # share of braking power that reaches the battery
    slow_charge_kw: float
    fast_charge_kw: float
    share: float  # of the fleet


# Sizes as in spec 1.2 and public data: cars of 90-104 cells and 145-180 Ah, buses LFP of 500-600 V and 500-640 Ah.
CATALOGUE: Final[tuple[VehicleModel, ...]] = (
    VehicleModel("sedan-ncm-96", Usage.PRIVATE, Chemistry.NCM, 16, 96, 20, 150, 0.30, 1950, 0.0095, 0.62, 0.7,
                 120, 280, 92, 0.62, 6.6, 60, 0.28),
    VehicleModel("hatch-lfp-104", Usage.PRIVATE, Chemistry.LFP, 25, 104, 16, 135, 0.26, 1600, 0.0095, 0.66, 0.6,
                 70, 180, 96, 0.60, 6.6, 45, 0.22),
    VehicleModel("taxi-ncm-90", Usage.TAXI, Chemistry.NCM, 16, 90, 32, 160, 0.29, 1850, 0.0100, 0.66, 0.9,
                 110, 260, 94, 0.60, 6.6, 65, 0.15),
    VehicleModel("taxi-lfp-108", Usage.TAXI, Chemistry.LFP, 25, 108, 24, 165, 0.24, 1900, 0.0100, 0.65, 0.9,
                 110, 260, 94, 0.60, 6.6, 65, 0.10),
    VehicleModel("bus-lfp-168", Usage.BUS, Chemistry.LFP, 16, 168, 48, 580, 0.20, 15500, 0.0066, 4.6, 2.6,
                 200, 2600, 34, 0.62, 60, 130, 0.08),
    VehicleModel("bus-lfp-180", Usage.BUS, Chemistry.LFP, 25, 180, 60, 540, 0.20, 14500, 0.0066, 4.4, 2.6,
                 200, 2600, 34, 0.62, 60, 130, 0.05),
    VehicleModel("van-lfp-100", Usage.LOGISTICS, Chemistry.LFP, 16, 100, 16, 130, 0.28, 2600, 0.0095, 1.75, 0.6,
                 60, 220, 98, 0.58, 6.6, 40, 0.08),
    VehicleModel("van-ncm-96", Usage.LOGISTICS, Chemistry.NCM, 25, 96, 16, 130, 0.30, 2700, 0.0095, 1.75, 0.6,
                 70, 240, 98, 0.58, 6.6, 40, 0.04),
)  # fmt: skip

# Columns of USAGES.
(U_TRIP_MIN, U_TRIP_SIGMA, U_PARK_MIN, U_PARK_SIGMA, U_CRUISE_KMH, U_STOP_SHARE, U_FAST_SHARE, U_CHARGE_BELOW,
 U_KM_PER_DAY) = range(9)  # fmt: skip

# One row per Usage: median trip (min) and its log sd, median pause (min) and its log sd, cruising speed (km/h),
# share of driving segments that are a stop, share of fast charges, SOC below which a charge is sought, km/day
# (which only seeds the odometer).
USAGES: Final[F64] = np.array(
    [
        [18.0, 0.60, 110.0, 0.80, 39.0, 0.22, 0.35, 0.42, 40.0],
        [25.0, 0.50, 16.0, 0.70, 37.0, 0.26, 0.85, 0.40, 220.0],
        [50.0, 0.25, 24.0, 0.35, 27.0, 0.34, 0.90, 0.40, 180.0],
        [32.0, 0.50, 40.0, 0.60, 36.0, 0.24, 0.55, 0.40, 140.0],
    ]
)

# Probability that a parked vehicle sets off when its pause ends, by Usage and local hour.
ACTIVITY: Final[F64] = np.array(
    [
        [0.02, 0.01, 0.01, 0.01, 0.02, 0.08, 0.30, 0.75, 0.80, 0.50, 0.40, 0.45,
         0.45, 0.40, 0.40, 0.45, 0.60, 0.80, 0.80, 0.60, 0.40, 0.30, 0.15, 0.05],
        [0.60, 0.50, 0.40, 0.35, 0.40, 0.60, 0.85, 0.95, 0.95, 0.95, 0.90, 0.90,
         0.90, 0.90, 0.90, 0.90, 0.95, 0.95, 0.95, 0.90, 0.90, 0.90, 0.85, 0.70],
        [0.05, 0.02, 0.02, 0.02, 0.10, 0.70, 0.95, 0.98, 0.98, 0.95, 0.95, 0.95,
         0.95, 0.95, 0.95, 0.95, 0.98, 0.98, 0.98, 0.95, 0.90, 0.80, 0.50, 0.20],
        [0.10, 0.08, 0.08, 0.10, 0.25, 0.50, 0.80, 0.90, 0.90, 0.90, 0.90, 0.80,
         0.80, 0.90, 0.90, 0.90, 0.90, 0.80, 0.60, 0.40, 0.30, 0.20, 0.15, 0.10],
    ]
)  # fmt: skip

# Name, west, south, east, north (degrees): the box in which a vehicle walks, ambient temperature (°C).
CITIES: Final[tuple[tuple[str, float, float, float, float, float], ...]] = (
    ("Beijing", 116.20, 39.75, 116.60, 40.05, 14.0),
    ("Shanghai", 121.30, 31.05, 121.65, 31.40, 18.0),
    ("Guangzhou", 113.15, 23.00, 113.50, 23.25, 24.0),
    ("Shenzhen", 113.85, 22.50, 114.30, 22.75, 24.0),
    ("Chengdu", 103.90, 30.50, 104.25, 30.80, 17.0),
    ("Hangzhou", 120.00, 30.15, 120.40, 30.40, 18.0),
    ("Hefei", 117.10, 31.70, 117.45, 31.95, 17.0),
    ("Xi'an", 108.80, 34.15, 109.10, 34.40, 15.0),
)

# Columns of Fleet.params.
(P_EDITION, P_USAGE, P_CHEMISTRY, P_CELLS, P_PROBES, P_CAPACITY_AH, P_RESISTANCE_OHM, P_MASS_KG, P_ROLLING, P_DRAG_M2,
 P_AUXILIARY_W, P_MOTOR_W, P_MOTOR_NM, P_RPM_PER_KMH, P_REGENERATION, P_SLOW_W, P_FAST_W, P_WEST, P_SOUTH, P_EAST,
 P_NORTH, P_AMBIENT_C, P_WEAK_CELL, P_WEAK_MV, P_INSULATION_KOHM, P_SPREAD_MV, P_ODOMETER_M,
 P_SOC, P_THERMAL_S, P_SLEEP_S) = range(30)  # fmt: skip
PARAM_COUNT: Final = 30

_DRAWS = 1 << 40  # keeps the draws that make a vehicle apart from those of its seconds
WEAK_SHARE: Final = 0.03  # of vehicles have one cell that sags
# Cells of a pack are sorted before it is built: in two real packs of 96 and 88 cells the sound ones stay within two
# standard deviations of their pack's mean.  A bare normal distribution would put one of 96 beyond three.
SORTED_SD: Final = 2.2

_VIN_ALPHABET: Final = "0123456789ABCDEFGHJKLMNPRSTUVWXYZ"  # I, O and Q are not used in VINs (GB 16735)
_VIN_VALUES: Final = dict(
    zip(
        "0123456789ABCDEFGHJKLMNPRSTUVWXYZ", [*range(10), *range(1, 9), 1, 2, 3, 4, 5, 7, 9, *range(2, 10)], strict=True
    )
)
_VIN_WEIGHTS: Final = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
VEHICLES_MAX: Final = 1_000_000  # six digits of serial number


def check_digit(vin: str) -> str:
    """Ninth character of a VIN from the other sixteen (GB 16735, ISO 3779)."""
    total = sum(_VIN_VALUES[c] * w for c, w in zip(vin, _VIN_WEIGHTS, strict=True))
    return "X" if total % 11 == 10 else str(total % 11)


def make_vin(seed: int, index: int, model: int) -> str:
    """VIN of vehicle ``index``: LNEV, model, three characters of the seed, check digit, year, plant, serial."""
    mark = int(uniform(seed, _DRAWS, 0, 99) * len(_VIN_ALPHABET) ** 3)
    code = ""
    for _ in range(3):
        mark, rest = divmod(mark, len(_VIN_ALPHABET))
        code += _VIN_ALPHABET[rest]
    vin = f"LNEV{_VIN_ALPHABET[10 + model]}{code}0SA{index:06d}"
    return vin[:8] + check_digit(vin) + vin[9:]


@dataclass(frozen=True, slots=True)
class Plants:
    """What is planted in a fleet for statistics to find.

    weak: vehicles with one weak cell, by number (None: ``WEAK_SHARE`` of them, drawn) · thermal: vehicle number →
    second since 1970 from which its battery goes up, the next time it stands still · sleep_s: a parked vehicle that is
    not plugged in falls silent after so long (0: it goes on reporting).
    """

    weak: frozenset[int] | None = None
    thermal: Mapping[int, int] = field(default_factory=dict)
    sleep_s: int = 0


SLEEP_S: Final = 600


def spread_plants(vehicles: int, weak: int | None, thermal: int, sleep: bool, start_s: int, span_s: int) -> Plants:
    """So many weak and burning vehicles, evenly over the fleet and never the same; fires in the span's last half."""

    def nth(count: int, phase: float) -> list[int]:
        return [int((i + phase) * vehicles / count) for i in range(count)]

    weakened = None if weak is None else frozenset(nth(weak, 0.25) if weak else ())
    burning: dict[int, int] = {}
    for i, chosen in enumerate(nth(thermal, 0.75) if thermal else ()):
        v = chosen
        while v in burning or v in (weakened or ()):
            v = (v + 1) % vehicles
        burning[v] = start_s + int(span_s * (0.5 + 0.45 * (i + 0.5) / thermal))
    return Plants(weakened, burning, SLEEP_S if sleep else 0)


@dataclass(frozen=True, slots=True)
class Fleet:
    """What never changes of ``n`` vehicles.

    model (n,) i64 index into ``CATALOGUE`` · params (n, PARAM_COUNT) f64 · vins: text · vin (n, 17) u8 ·
    cell_offset_mv (n, cells_max) f64, mean 0 over each vehicle's cells · city (n,) i64.
    """

    seed: int
    model: I64
    params: F64
    vins: tuple[str, ...]
    vin: NDArray[np.uint8]
    cell_offset_mv: F64
    city: I64

    @property
    def n(self) -> int:
        return len(self.vins)

    def edition(self, index: int) -> int:
        return int(self.params[index, P_EDITION])


def make_fleet(vehicles: int, seed: int, model: str | None = None, plants: Plants | None = None) -> Fleet:
    """A fleet of ``vehicles``; ``model`` makes all of them that one of the catalogue.

    Raises ``ValueError`` for a fleet of no or too many vehicles, or an unknown model.
    """
    if not 1 <= vehicles <= VEHICLES_MAX:
        raise ValueError(f"{vehicles} vehicles: a fleet has 1 to {VEHICLES_MAX:,}")
    names = [line.name for line in CATALOGUE]
    if model is not None and model not in names:
        raise ValueError(f"no vehicle model {model!r}: the catalogue has {', '.join(names)}")
    bounds = np.cumsum([line.share for line in CATALOGUE])
    which = np.empty(vehicles, np.int64)
    city = np.empty(vehicles, np.int64)
    params = np.zeros((vehicles, PARAM_COUNT))
    offsets = np.zeros((vehicles, max(line.cells for line in CATALOGUE)))
    plants = plants or Plants()
    for i in range(vehicles):
        draw = partial(uniform, seed, _DRAWS + i, 0)
        which[i] = names.index(model) if model else int(np.sum(bounds <= draw(0) * bounds[-1]))
        city[i] = int(draw(1) * len(CITIES))
        line = CATALOGUE[which[i]]
        _, west, south, east, north, ambient = CITIES[city[i]]
        age_days = 60 + draw(2) * 1400
        health = 1.0 - 0.12 * age_days / 1460 - 0.02 * draw(3)
        weak = draw(4) < WEAK_SHARE if plants.weak is None else i in plants.weak
        params[i] = (
            line.edition, line.usage, line.chemistry, line.cells, line.probes, line.capacity_ah * health,
            line.cells * line.cell_resistance_mohm / 1000 * (0.9 + 0.3 * draw(5)),
            line.mass_kg * (0.97 + 0.1 * draw(6)),
            line.rolling, line.drag_area_m2, line.auxiliary_kw * 1000 * (0.7 + 0.7 * draw(7)), line.motor_kw * 1000,
            line.motor_nm, line.rpm_per_kmh, line.regeneration, line.slow_charge_kw * 1000, line.fast_charge_kw * 1000,
            west, south, east, north, ambient + 4 * (draw(8) - 0.5), int(draw(9) * line.cells) if weak else -1,
            30 + 45 * draw(10) if weak else 0.0, 1500 + 3500 * draw(11), 3.2 + 2.0 * draw(12),
            age_days * USAGES[line.usage, U_KM_PER_DAY] * 1000 * (0.8 + 0.4 * draw(13)), 0.30 + 0.65 * draw(14),
            plants.thermal.get(i, 0), plants.sleep_s,
        )  # fmt: skip
        cells = np.array([normal(seed, _DRAWS + i, 1, 2 * c) for c in range(line.cells)])
        cells = cells.clip(-SORTED_SD, SORTED_SD) * params[i, P_SPREAD_MV]
        offsets[i, : line.cells] = cells - cells.mean()
    vins = tuple(make_vin(seed, i, int(which[i])) for i in range(vehicles))
    vin = np.frombuffer("".join(vins).encode("ascii"), np.uint8).reshape(vehicles, 17).copy()
    return Fleet(seed, which, params, vins, vin, offsets, city)
