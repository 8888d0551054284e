"""How a vehicle moves, discharges and charges: kernels over arrays of vehicle state.

The state advances in steps of exactly one second, so what a vehicle does does not depend on when it
is looked at.  Within a second power is constant: V = OCV - I·R, P = V·I, and SOC loses I·1 s of the
capacity, so energy, charge and SOC always agree.

These kernels have no slow twin: they are a model of the world, not of a document; tests hold them
to the laws they must keep (energy, charge, distance).
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from schemas.batch import I32, I64, U8
from schemas.jit import compiled
from schemas.signals import INDEX, SIGNAL_COUNT
from services.fleetsim.noise import normal, uniform
from services.fleetsim.vehicle import (
    ACTIVITY,
    P_AMBIENT_C,
    P_AUXILIARY_W,
    P_CAPACITY_AH,
    P_CELLS,
    P_CHEMISTRY,
    P_DRAG_M2,
    P_EAST,
    P_EDITION,
    P_FAST_W,
    P_INSULATION_KOHM,
    P_MASS_KG,
    P_MOTOR_NM,
    P_MOTOR_W,
    P_NORTH,
    P_ODOMETER_M,
    P_PROBES,
    P_REGENERATION,
    P_RESISTANCE_OHM,
    P_ROLLING,
    P_RPM_PER_KMH,
    P_SLEEP_S,
    P_SLOW_W,
    P_SOC,
    P_SOUTH,
    P_THERMAL_S,
    P_USAGE,
    P_WEAK_CELL,
    P_WEAK_MV,
    P_WEST,
    U_CHARGE_BELOW,
    U_CRUISE_KMH,
    U_FAST_SHARE,
    U_PARK_MIN,
    U_PARK_SIGMA,
    U_STOP_SHARE,
    U_TRIP_MIN,
    U_TRIP_SIGMA,
    USAGES,
)  # fmt: skip

F64 = NDArray[np.float64]
U16 = NDArray[np.uint16]

PARKED, DRIVING, CHARGING = 0.0, 1.0, 2.0

# Columns of the state.  Energies in J, charges in As, S_MOVING_S and S_CHARGING_S count up for ever; the S_BEGUN_* ones
# are their values when the present mode began, S_RUN_* when the present trip's wheels first turned, S_LAST_* when they
# last did.
(S_MODE, S_LEFT_S, S_SPEED_MS, S_TARGET_MS, S_SEGMENT_S, S_SOC, S_ODOMETER_M, S_TEMP_C, S_MOTOR_TEMP_C, S_LON, S_LAT,
 S_HEADING, S_CURRENT_A, S_VOLTAGE_V, S_WHEEL_W, S_FORCE_N, S_CHARGE_W, S_CHARGE_TO, S_PLUGGED, S_OUT_J, S_BACK_J,
 S_CHARGED_J, S_OUT_AS, S_CHARGED_AS, S_BEGUN_S, S_BEGUN_SOC, S_BEGUN_M, S_BEGUN_J, S_BEGUN_AS, S_ACCELERATION,
 S_SHOWN, S_STOOD_J, S_STOOD_AS, S_MOVING_S, S_CHARGING_S, S_RUN_S, S_RUN_SOC, S_RUN_M, S_RUN_J, S_RUN_AS, S_LAST_S,
 S_LAST_SOC, S_LAST_M, S_LAST_J, S_LAST_AS, S_BURNT_S) = range(46)  # fmt: skip
STATE_COUNT: Final = 46

# Columns of an event: a trip or charge that has ended (energy and charge net, positive out of the battery), the
# counters at a local midnight, or a battery that begins to burn (a time only).
(E_VEHICLE, E_WHAT, E_START_S, E_END_S, E_START_SOC, E_END_SOC, E_DISTANCE_M, E_ENERGY_J, E_CHARGE_AS, E_ON_S,
 E_START_M) = range(11)  # fmt: skip
EVENT_COUNT: Final = 15
MIDNIGHT, BURNT = 10.0, 11.0  # E_WHAT besides DRIVING and CHARGING; the counters of a midnight begin at E_COUNTERS
E_COUNTERS: Final = 3
# Counters, as they count up for ever: of a midnight, and of any second that is asked for (``trace``).  The last three
# do not count: state of charge, mode and power (positive out of the battery) of the second that ends there.
(C_ODOMETER_M, C_OUT_J, C_BACK_J, C_CHARGED_J, C_STOOD_J, C_OUT_AS, C_CHARGED_AS, C_MOVING_S, C_CHARGING_S,
 C_SOC, C_MODE, C_POWER_W) = range(12)  # fmt: skip
COUNTERS: Final = 12
assert E_COUNTERS + COUNTERS <= EVENT_COUNT
MODE_SHORTEST_S: Final = 60  # no mode is entered for less, which bounds the number of events
STOP_SPLITS_S: Final = 300.0  # wheels at rest for so long end a trip: the statistics' own rule (4.2)

# Open-circuit voltage of one cell at 0, 10, .. 100 % SOC: LFP, NCM.
OCV_V: Final[F64] = np.array(
    [
        [2.90, 3.19, 3.235, 3.265, 3.285, 3.295, 3.300, 3.322, 3.330, 3.336, 3.440],
        [3.30, 3.49, 3.565, 3.605, 3.640, 3.685, 3.765, 3.860, 3.955, 4.060, 4.180],
    ]
)

LOCAL_OFFSET_S: Final = 8 * 3600  # China has one time zone
_GRAVITY, _AIR = 9.81, 1.2
_METRES_PER_DEGREE: Final = 111_320.0


@compiled
def ocv(chemistry: int, soc: float) -> float:
    """Open-circuit voltage of one cell, V."""
    x = min(max(soc, 0.0), 1.0) * 10.0
    i = min(int(x), 9)
    return OCV_V[chemistry, i] + (OCV_V[chemistry, i + 1] - OCV_V[chemistry, i]) * (x - i)  # type: ignore[no-any-return]


@compiled
def _enter(p: F64, s: F64, mode: float, left_s: float, now_s: int, seed: int, who: int) -> None:
    """Change mode; the trip or charge that begins is measured from here."""
    s[S_MODE] = mode
    s[S_LEFT_S] = max(left_s, float(MODE_SHORTEST_S))
    s[S_BEGUN_S] = float(now_s)
    s[S_BEGUN_SOC] = s[S_SOC]
    s[S_BEGUN_M] = s[S_ODOMETER_M]
    s[S_BEGUN_J] = s[S_OUT_J] - s[S_BACK_J] - s[S_CHARGED_J]
    s[S_BEGUN_AS] = s[S_OUT_AS] - s[S_CHARGED_AS]
    s[S_SEGMENT_S] = 0.0
    s[S_PLUGGED] = 1.0 if mode == CHARGING else 0.0
    if mode == CHARGING:
        usage = int(p[P_USAGE])
        fast = uniform(seed, who, now_s, 20) < USAGES[usage, U_FAST_SHARE]
        s[S_CHARGE_W] = (p[P_FAST_W] if fast else p[P_SLOW_W]) * (0.80 + 0.2 * uniform(seed, who, now_s, 21))
        # a third of charges end full, the others between 55 and 97 % (spec 1.2)
        full = uniform(seed, who, now_s, 22) < 0.34
        s[S_CHARGE_TO] = 1.0 if full else 0.97 - 0.42 * uniform(seed, who, now_s, 23) ** 2
        s[S_CHARGE_TO] = max(s[S_CHARGE_TO], min(s[S_SOC] + 0.05, 1.0))


@compiled
def _next_mode(p: F64, s: F64, now_s: int, seed: int, who: int) -> None:
    """What follows when the present mode has run out."""
    usage = int(p[P_USAGE])
    hour = (now_s + LOCAL_OFFSET_S) // 3600 % 24
    # drawn once a day: a dice at every look would find its highest value, and charge too early
    day = (now_s + LOCAL_OFFSET_S) // 86400
    below = USAGES[usage, U_CHARGE_BELOW] * (0.3 + 1.1 * uniform(seed, who, day, 10))
    if hour >= 22 or hour < 5:
        below += 0.25 * uniform(seed, who, day, 11)
    pause = USAGES[usage, U_PARK_MIN] * math.exp(USAGES[usage, U_PARK_SIGMA] * normal(seed, who, now_s, 12)) * 60.0
    if s[S_SOC] < max(below, 0.06) and s[S_MODE] != CHARGING:
        _enter(p, s, CHARGING, 8 * 3600.0, now_s, seed, who)
    elif s[S_MODE] == PARKED and uniform(seed, who, now_s, 14) < ACTIVITY[usage, hour] and s[S_SOC] > 0.10:
        trip = USAGES[usage, U_TRIP_MIN] * math.exp(USAGES[usage, U_TRIP_SIGMA] * normal(seed, who, now_s, 15)) * 60.0
        _enter(p, s, DRIVING, trip, now_s, seed, who)
    elif s[S_MODE] == PARKED:
        s[S_LEFT_S] = 300.0 + 600.0 * uniform(seed, who, now_s, 16)  # look again later
    else:
        plugged = s[S_MODE] == CHARGING and s[S_SOC] > 0.995
        _enter(p, s, PARKED, min(pause, 6 * 3600.0), now_s, seed, who)
        s[S_PLUGGED] = 1.0 if plugged else 0.0


@compiled
def begin(p: F64, s: F64, now_s: int, seed: int, who: int) -> None:
    """State of a vehicle at the first second of the simulation.

    Weighted towards motion whatever the hour: a fleet that is looked at for a minute should show
    driving and charging.
    """
    s[:] = 0.0
    s[S_SOC] = p[P_SOC]
    s[S_ODOMETER_M] = p[P_ODOMETER_M]
    s[S_VOLTAGE_V] = ocv(int(p[P_CHEMISTRY]), s[S_SOC]) * p[P_CELLS]
    s[S_TEMP_C] = p[P_AMBIENT_C] + 3.0
    s[S_MOTOR_TEMP_C] = p[P_AMBIENT_C] + 5.0
    s[S_LON] = p[P_WEST] + (p[P_EAST] - p[P_WEST]) * uniform(seed, who, 1, 1)
    s[S_LAT] = p[P_SOUTH] + (p[P_NORTH] - p[P_SOUTH]) * uniform(seed, who, 1, 2)
    s[S_HEADING] = 2 * math.pi * uniform(seed, who, 1, 3)
    usage = int(p[P_USAGE])
    hour = (now_s + LOCAL_OFFSET_S) // 3600 % 24
    drive = 0.35 + 0.45 * ACTIVITY[usage, hour]
    dice = uniform(seed, who, 1, 4)
    left = uniform(seed, who, 1, 5)
    if dice < drive:
        _enter(p, s, DRIVING, USAGES[usage, U_TRIP_MIN] * 60.0 * left, now_s, seed, who)
    elif dice < drive + 0.22 and s[S_SOC] < 0.93:
        _enter(p, s, CHARGING, 8 * 3600.0, now_s, seed, who)
    else:
        _enter(p, s, PARKED, USAGES[usage, U_PARK_MIN] * 60.0 * left, now_s, seed, who)
    s[S_SHOWN] = s[S_MODE]


@compiled
def _drive(p: F64, s: F64, now_s: int, seed: int, who: int) -> float:
    """One second behind the wheel; returns the battery power in W, positive out."""
    if s[S_SEGMENT_S] <= 0.0:
        usage = int(p[P_USAGE])
        if uniform(seed, who, now_s, 1) < USAGES[usage, U_STOP_SHARE]:
            s[S_TARGET_MS] = 0.0
            s[S_SEGMENT_S] = 12.0 + 40.0 * uniform(seed, who, now_s, 2)
        else:
            s[S_TARGET_MS] = USAGES[usage, U_CRUISE_KMH] / 3.6 * (0.55 + 0.9 * uniform(seed, who, now_s, 3))
            s[S_SEGMENT_S] = 20.0 + 60.0 * uniform(seed, who, now_s, 2)
        s[S_HEADING] += 0.9 * (uniform(seed, who, now_s, 4) - 0.5)
    s[S_SEGMENT_S] -= 1.0
    heavy = p[P_MASS_KG] > 8000.0
    wanted = 0.0 if s[S_LEFT_S] <= 0.0 or s[S_SOC] < 0.03 else s[S_TARGET_MS]
    wanted *= 0.97 + 0.06 * uniform(seed, who, now_s, 5)
    speed = s[S_SPEED_MS]
    step = min(max(wanted - speed, -1.1 if heavy else -1.6), 0.7 if heavy else 1.2)
    # the motor's power bounds the acceleration
    drag = 0.5 * _AIR * p[P_DRAG_M2] * speed * speed
    roll = p[P_MASS_KG] * _GRAVITY * p[P_ROLLING] if speed + step > 0.01 else 0.0
    most = 0.85 * p[P_MOTOR_W] / max(speed, 2.0) - drag - roll
    step = max(min(step, most / p[P_MASS_KG]), -speed)
    if wanted < 0.3 and speed + step < 0.3:
        step = -speed
    mean = speed + 0.5 * step
    force = p[P_MASS_KG] * step + drag + roll
    s[S_SPEED_MS] = speed + step
    s[S_ACCELERATION] = step
    s[S_ODOMETER_M] += mean
    s[S_FORCE_N] = force
    wheel = force * mean
    # friction brakes take what the battery must not: little below 7 km/h, nothing into a full battery
    if wheel < 0.0:
        share = p[P_REGENERATION] * min(mean / 2.0, 1.0) * min(max((0.98 - s[S_SOC]) * 25.0, 0.0), 1.0)
        wheel = max(wheel * share, -0.6 * p[P_MOTOR_W])
    s[S_WHEEL_W] = wheel
    # walk on the map, turned back at the edge of the box
    east = math.sin(s[S_HEADING]) * mean / (_METRES_PER_DEGREE * math.cos(math.radians(s[S_LAT])))
    north = math.cos(s[S_HEADING]) * mean / _METRES_PER_DEGREE
    if not p[P_WEST] < s[S_LON] + east < p[P_EAST]:
        east = -east
        s[S_HEADING] = -s[S_HEADING]
    if not p[P_SOUTH] < s[S_LAT] + north < p[P_NORTH]:
        north = -north
        s[S_HEADING] = math.pi - s[S_HEADING]
    s[S_LON] += east
    s[S_LAT] += north
    electric = wheel / 0.88 if wheel >= 0.0 else wheel * 0.90
    return float(electric + p[P_AUXILIARY_W])


@compiled
def _charge_power(s: F64) -> float:
    """Power into the battery in W (positive): constant, then falling towards full."""
    knee = 0.80 if s[S_CHARGE_W] > 20_000.0 else 0.96
    left = min(max((1.0 - s[S_SOC]) / (1.0 - knee), 0.0), 1.0)
    return float(s[S_CHARGE_W] * (0.08 + 0.92 * left))


@compiled
def _count(s: F64, out: F64) -> None:
    """The counters of this second."""
    out[C_ODOMETER_M] = s[S_ODOMETER_M]
    out[C_OUT_J] = s[S_OUT_J]
    out[C_BACK_J] = s[S_BACK_J]
    out[C_CHARGED_J] = s[S_CHARGED_J]
    out[C_STOOD_J] = s[S_STOOD_J]
    out[C_OUT_AS] = s[S_OUT_AS]
    out[C_CHARGED_AS] = s[S_CHARGED_AS]
    out[C_MOVING_S] = s[S_MOVING_S]
    out[C_CHARGING_S] = s[S_CHARGING_S]
    out[C_SOC] = s[S_SOC]
    out[C_MODE] = s[S_SHOWN]
    out[C_POWER_W] = s[S_VOLTAGE_V] * s[S_CURRENT_A]


@compiled
def _trip_ended(s: F64, who: int, line: F64) -> None:
    """The trip in the state as an event: from its wheels' first to their last second of turning."""
    line[E_VEHICLE] = float(who)
    line[E_WHAT] = DRIVING
    line[E_START_S] = s[S_RUN_S]
    line[E_END_S] = s[S_LAST_S]
    line[E_START_SOC] = s[S_RUN_SOC]
    line[E_END_SOC] = s[S_LAST_SOC]
    line[E_DISTANCE_M] = s[S_LAST_M] - s[S_RUN_M]
    line[E_ENERGY_J] = s[S_LAST_J] - s[S_RUN_J]
    line[E_CHARGE_AS] = s[S_LAST_AS] - s[S_RUN_AS]
    line[E_ON_S] = s[S_BEGUN_S]
    line[E_START_M] = s[S_RUN_M]
    s[S_RUN_S] = 0.0


@compiled
def step(p: F64, s: F64, now_s: int, seed: int, who: int, events: F64, count: int) -> int:
    """Advance one vehicle from ``now_s`` by one second; returns the number of events written so far."""
    s[S_SHOWN] = s[S_MODE]  # a report is of the second that ends with it
    s[S_LEFT_S] -= 1.0
    if (now_s + LOCAL_OFFSET_S) % 86400 == 0:
        events[count, E_VEHICLE] = float(who)
        events[count, E_WHAT] = MIDNIGHT
        events[count, E_START_S] = float(now_s)
        _count(s, events[count, E_COUNTERS:])
        count += 1
    # parked for a while: what burns is not what drives, and nothing drives afterwards
    if p[P_THERMAL_S] > 0.0 and s[S_BURNT_S] == 0.0 and s[S_MODE] == PARKED and now_s >= p[P_THERMAL_S]:
        s[S_BURNT_S] = float(now_s)
        s[S_LEFT_S] = 1e12
        events[count, E_VEHICLE] = float(who)
        events[count, E_WHAT] = BURNT
        events[count, E_START_S] = float(now_s)
        count += 1
    soc, odometer = s[S_SOC], s[S_ODOMETER_M]
    joules, ampere_s = s[S_OUT_J] - s[S_BACK_J] - s[S_CHARGED_J], s[S_OUT_AS] - s[S_CHARGED_AS]
    if s[S_MODE] == DRIVING:
        power = _drive(p, s, now_s, seed, who)
    elif s[S_MODE] == CHARGING:
        power = -_charge_power(s)
    else:
        power = 120.0  # the electronics of a parked car
    resistance = p[P_RESISTANCE_OHM] * (1.0 + 0.006 * max(25.0 - s[S_TEMP_C], 0.0))
    empty = ocv(int(p[P_CHEMISTRY]), s[S_SOC]) * p[P_CELLS]
    # P = (OCV - I R) I solved for the smaller I; the root exists while P is below OCV²/4R
    inside = max(empty * empty - 4.0 * resistance * power, 0.0)
    current = (empty - math.sqrt(inside)) / (2.0 * resistance)
    voltage = empty - current * resistance
    s[S_CURRENT_A] = current
    s[S_VOLTAGE_V] = voltage
    energy = voltage * current
    s[S_SOC] -= current / (3600.0 * p[P_CAPACITY_AH])
    if s[S_MODE] == CHARGING:
        s[S_CHARGED_J] -= energy
        s[S_CHARGED_AS] -= current
        s[S_CHARGING_S] += 1.0
    else:
        if s[S_MODE] == PARKED:
            s[S_STOOD_J] += energy
            s[S_STOOD_AS] += current
        s[S_OUT_AS] += current
        if energy >= 0.0:
            s[S_OUT_J] += energy
        else:
            s[S_BACK_J] -= energy
    if s[S_MODE] == DRIVING:
        if s[S_ODOMETER_M] > odometer:
            if s[S_RUN_S] == 0.0:
                s[S_RUN_S] = float(now_s)
                s[S_RUN_SOC] = soc
                s[S_RUN_M] = odometer
                s[S_RUN_J] = joules
                s[S_RUN_AS] = ampere_s
            s[S_MOVING_S] += 1.0
            s[S_LAST_S] = float(now_s + 1)
            s[S_LAST_SOC] = s[S_SOC]
            s[S_LAST_M] = s[S_ODOMETER_M]
            s[S_LAST_J] = s[S_OUT_J] - s[S_BACK_J] - s[S_CHARGED_J]
            s[S_LAST_AS] = s[S_OUT_AS] - s[S_CHARGED_AS]
        elif s[S_RUN_S] > 0.0 and now_s + 1 - s[S_LAST_S] >= STOP_SPLITS_S:
            _trip_ended(s, who, events[count])
            count += 1
    heat = current * current * resistance
    # a heat capacity of 1 kJ/kg, 6 kg per kWh, and a liquid loop that pulls towards 25 °C
    capacity_jk = p[P_CAPACITY_AH] * empty * 6.0
    s[S_TEMP_C] += heat / capacity_jk + (p[P_AMBIENT_C] - s[S_TEMP_C]) / 30_000.0 + (25.0 - s[S_TEMP_C]) / 15_000.0
    load = abs(s[S_WHEEL_W]) if s[S_MODE] == DRIVING else 0.0
    s[S_MOTOR_TEMP_C] += (p[P_AMBIENT_C] + 5.0 + 70.0 * load / p[P_MOTOR_W] - s[S_MOTOR_TEMP_C]) / 400.0
    ended = (
        s[S_LEFT_S] <= 0.0
        if s[S_MODE] == PARKED
        else (s[S_SPEED_MS] == 0.0 and (s[S_LEFT_S] <= 0.0 or s[S_SOC] < 0.03))
        if s[S_MODE] == DRIVING
        else s[S_SOC] >= s[S_CHARGE_TO]
    )
    if ended and now_s + 1 - s[S_BEGUN_S] >= MODE_SHORTEST_S:
        if s[S_MODE] == DRIVING and s[S_RUN_S] > 0.0:
            _trip_ended(s, who, events[count])
            count += 1
        if s[S_MODE] == CHARGING:
            line = events[count]
            line[E_VEHICLE] = float(who)
            line[E_WHAT] = CHARGING
            line[E_START_S] = s[S_BEGUN_S]
            line[E_END_S] = float(now_s + 1)
            line[E_START_SOC] = s[S_BEGUN_SOC]
            line[E_END_SOC] = s[S_SOC]
            line[E_DISTANCE_M] = s[S_ODOMETER_M] - s[S_BEGUN_M]
            line[E_ENERGY_J] = s[S_OUT_J] - s[S_BACK_J] - s[S_CHARGED_J] - s[S_BEGUN_J]
            line[E_CHARGE_AS] = s[S_OUT_AS] - s[S_CHARGED_AS] - s[S_BEGUN_AS]
            line[E_ON_S] = s[S_BEGUN_S]
            line[E_START_M] = s[S_BEGUN_M]
            count += 1
        s[S_WHEEL_W] = 0.0
        s[S_FORCE_N] = 0.0
        s[S_ACCELERATION] = 0.0
        _next_mode(p, s, now_s + 1, seed, who)
    return count


# -- what a vehicle says of its state --------------------------------------------------------------
# (closure constants: numba freezes them, a dict lookup inside a kernel would not compile)
_N = INDEX
(I_VEHICLE, I_CHARGE, I_RUN, I_SPEED, I_ODO, I_VOLT, I_AMP, I_SOC, I_DCDC, I_GEAR, I_INSUL, I_ACCEL, I_BRAKE) = (
    _N["vehicle_state"], _N["charge_state"], _N["run_mode"], _N["speed_kmh"], _N["odometer_km"],
    _N["total_voltage_v"], _N["total_current_a"], _N["soc_pct"], _N["dcdc_state"], _N["gear"],
    _N["insulation_resistance_kohm"], _N["accelerator_pct"], _N["brake_pct"],
)  # fmt: skip
(I_MCOUNT, I_MNO, I_MSTATE, I_MCTEMP, I_MRPM, I_MNM, I_MTEMP, I_MVOLT, I_MAMP) = (
    _N["motor_count"], _N["motor_no"], _N["motor_state"], _N["motor_controller_temp_c"], _N["motor_speed_rpm"],
    _N["motor_torque_nm"], _N["motor_temp_c"], _N["motor_input_voltage_v"], _N["motor_bus_current_a"],
)  # fmt: skip
(I_LOCVALID, I_COORD, I_LON, I_LAT) = (
    _N["location_valid"], _N["coord_sys"], _N["longitude_deg"], _N["latitude_deg"],
)  # fmt: skip
I_EXTREMES = _N["max_voltage_subsystem"]  # twelve in a row, to min_temp_c
(I_ALARM, I_FLAGS, I_FAULTS, I_GENERAL) = (
    _N["alarm_level"], _N["alarm_flags"], _N["pack_fault_count"], _N["general_fault_count"],
)  # fmt: skip
(I_PACKS, I_PVOLT, I_PAMP, I_PCELLS) = (
    _N["pack_count"], _N["pack_voltage_v"], _N["pack_current_a"], _N["pack_cell_total"],
)  # fmt: skip
(I_CCOUNT, I_CMAX, I_CMIN, I_CSUM, I_TCOUNT, I_TMAX, I_TMIN) = (
    _N["cell_count"], _N["cell_max_v"], _N["cell_min_v"], _N["cell_sum_v"],
    _N["probe_count"], _N["probe_max_c"], _N["probe_min_c"],
)  # fmt: skip
_SIGNALS: Final = SIGNAL_COUNT
VALID: Final = 1
ABSENT: Final = -1e300

FLAG_SOC_LOW, FLAG_CONSISTENCY, FLAG_INSULATION = 1 << 4, 1 << 10, 1 << 11
TEMP_BIAS: Final = 40  # raw probe temperature = °C + 40
BURN_C_PER_S, BURN_RISES_S = 1.5, 80.0
BURN_REPORTS_S: Final = 600.0  # a burning vehicle reports for so long, and never again


@compiled
def observe(
    p: F64, s: F64, offset_mv: F64, now_s: int, seed: int, who: int, values: F64, cells: U16, temps: U8
) -> None:
    """What vehicle ``who`` would report at ``now_s``: one line of the arrays of ``Samples``.

    values (SIGNAL_COUNT,) raw, ``ABSENT`` where there is none · cells mV · temps raw (°C + 40).  Pack
    voltage is the sum of the rounded cells, as a real BMS has it to within 0.1 V.
    """
    values[:] = ABSENT
    cell_count, probe_count = int(p[P_CELLS]), int(p[P_PROBES])
    # cells: the mean of the pack, a fixed offset each, a little noise, and the weak one's sag
    weak = int(p[P_WEAK_CELL])
    sag = 0.0
    if weak >= 0:
        sag = p[P_WEAK_MV] * (1.0 + 0.3 * s[S_CURRENT_A] / p[P_CAPACITY_AH]) * (1.3 - 0.6 * s[S_SOC])
        sag = max(sag, 0.0)
    mean = 1000.0 * s[S_VOLTAGE_V] / cell_count + sag / cell_count
    stretch = 1.0 + min(abs(s[S_CURRENT_A]) / p[P_CAPACITY_AH], 2.0) * 0.25
    dither = uniform(seed, who, now_s, 30)
    total, highest, lowest, high_at, low_at = 0, -1, 1 << 30, 0, 0
    # a battery that burns: one cell collapses within 20 s, its probe climbs by 1.5 °C/s for 80 s and then cools slowly
    burning = now_s - s[S_BURNT_S] if s[S_BURNT_S] > 0.0 else 0.0
    burnt_cell = int(uniform(seed, who, 3, 1) * cell_count) if burning > 0.0 else -1
    burnt_probe = int(uniform(seed, who, 3, 2) * probe_count) if burning > 0.0 else -1
    heat = min(burning * BURN_C_PER_S, BURN_C_PER_S * BURN_RISES_S)
    if burning > BURN_RISES_S:
        heat *= math.exp(-(burning - BURN_RISES_S) / 900.0)
    for c in range(cell_count):
        wobble = (dither * (c + 1.618) * 7.31) % 1.0 - 0.5
        value = math.floor(mean + offset_mv[c] * stretch + wobble + 0.5 - (sag if c == weak else 0.0))
        if c == burnt_cell:
            value = math.floor(value * (1.0 - 0.45 * min(burning / 20.0, 1.0)))
        cells[c] = value
        total += value
        if value > highest:
            highest, high_at = value, c
        if value < lowest:
            lowest, low_at = value, c
    hottest, coldest, hot_at, cold_at = -1, 1 << 30, 0, 0
    for t in range(probe_count):
        value = math.floor(s[S_TEMP_C] + 2.6 * (uniform(seed, who, 2, t) - 0.5) + 0.5) + TEMP_BIAS
        if t == burnt_probe:
            value += math.floor(heat)
        value = min(max(value, 0), 250)
        temps[t] = value
        if value > hottest:
            hottest, hot_at = value, t
        if value < coldest:
            coldest, cold_at = value, t
    driving = s[S_SHOWN] == DRIVING
    charging = s[S_SHOWN] == CHARGING
    edition = int(p[P_EDITION])
    soc = min(max(math.floor(s[S_SOC] * 100.0 + 0.5), 0.0), 100.0)
    voltage = math.floor(total / 100.0 + 0.5)
    # a sensor's noise of one step of the wire: without it a parked car's 0.34 A would read 0.3 A for ever
    current = s[S_CURRENT_A] * 10.0 + uniform(seed, who, now_s, 35) - 0.5
    values[I_VEHICLE] = 1.0 if driving else 2.0
    values[I_CHARGE] = 1.0 if charging else 4.0 if s[S_PLUGGED] == 1.0 and not driving else 3.0
    values[I_RUN] = 1.0
    values[I_SPEED] = s[S_SPEED_MS] * 36.0
    values[I_ODO] = math.floor(s[S_ODOMETER_M] / 100.0)
    values[I_VOLT] = voltage
    values[I_AMP] = current
    values[I_SOC] = soc
    values[I_DCDC] = 1.0 if driving or charging else 2.0
    braking = driving and s[S_FORCE_N] < 0.0
    pushing = driving and s[S_FORCE_N] > 0.0 and s[S_SPEED_MS] > 0.0
    values[I_GEAR] = (14.0 if driving else 15.0) + (16.0 if braking else 0.0) + (32.0 if pushing else 0.0)
    hourly = uniform(seed, who, now_s // 3600, 31)
    insulation = p[P_INSULATION_KOHM] * (0.85 + 0.3 * hourly)
    # alarms flicker for one record; a rare half hour has a worse one
    flags, level = 0, 0
    if soc < 10.0:
        flags |= FLAG_SOC_LOW
        level = 1
    if weak >= 0 and highest - lowest > 70:
        flags |= FLAG_CONSISTENCY
        level = max(level, 1)
    luck = uniform(seed, who, now_s, 32)
    if luck < 0.0004:
        flags |= FLAG_CONSISTENCY
        level = max(level, 1 if luck < 0.0003 else 2)
    if uniform(seed, who, now_s // 1800, 33) < 0.0005:
        insulation = 40.0 + 40.0 * hourly
        flags |= FLAG_INSULATION
        level = 2
    if burning > 30.0:
        insulation = 5.0
    values[I_INSUL] = insulation
    if edition == 16:
        pedal = s[S_WHEEL_W] / p[P_MOTOR_W] * 100.0 if pushing else 0.0
        values[I_ACCEL] = min(max(pedal, 0.0), 100.0)
        values[I_BRAKE] = min(-s[S_ACCELERATION] * 40.0, 100.0) if braking else 0.0
    # motor
    rpm = s[S_SPEED_MS] * 3.6 * p[P_RPM_PER_KMH]
    watts = s[S_WHEEL_W] if driving else 0.0
    torque = 0.0 if rpm < 1.0 else watts / (rpm * 0.10471975511965977)
    torque = min(max(torque, -p[P_MOTOR_NM]), p[P_MOTOR_NM])
    values[I_MCOUNT] = 1.0
    values[I_MNO] = 1.0
    values[I_MSTATE] = 3.0 if not driving else 1.0 if watts > 0.0 else 2.0 if watts < 0.0 else 4.0
    values[I_MCTEMP] = s[S_MOTOR_TEMP_C] * 0.9
    values[I_MRPM] = rpm
    values[I_MNM] = torque * 10.0
    values[I_MTEMP] = s[S_MOTOR_TEMP_C]
    if edition == 16:
        values[I_MVOLT] = voltage
        values[I_MAMP] = 10.0 * (watts / 0.88 if watts > 0.0 else watts * 0.9) / max(s[S_VOLTAGE_V], 1.0)
    # location: no fix now and then (tunnels, garages)
    values[I_LOCVALID] = 0.0 if uniform(seed, who, now_s // 120, 34) < 0.01 else 1.0
    if edition == 25:
        values[I_COORD] = 1.0
    values[I_LON] = s[S_LON] * 1e6
    values[I_LAT] = s[S_LAT] * 1e6
    if edition == 16:
        values[I_EXTREMES] = 1.0
        values[I_EXTREMES + 1] = high_at + 1.0
        values[I_EXTREMES + 2] = float(highest)
        values[I_EXTREMES + 3] = 1.0
        values[I_EXTREMES + 4] = low_at + 1.0
        values[I_EXTREMES + 5] = float(lowest)
        values[I_EXTREMES + 6] = 1.0
        values[I_EXTREMES + 7] = hot_at + 1.0
        values[I_EXTREMES + 8] = float(hottest - TEMP_BIAS)
        values[I_EXTREMES + 9] = 1.0
        values[I_EXTREMES + 10] = cold_at + 1.0
        values[I_EXTREMES + 11] = float(coldest - TEMP_BIAS)
    values[I_ALARM] = float(level)
    values[I_FLAGS] = float(flags)
    for k in range(4):
        values[I_FAULTS + k] = 0.0
    if edition == 25:
        values[I_GENERAL] = 0.0
    values[I_PACKS] = 1.0
    values[I_PVOLT] = voltage
    values[I_PAMP] = current
    values[I_PCELLS] = float(cell_count)
    values[I_CCOUNT] = float(cell_count)
    values[I_CMAX] = float(highest)
    values[I_CMIN] = float(lowest)
    values[I_CSUM] = float(total)
    values[I_TCOUNT] = float(probe_count)
    values[I_TMAX] = float(hottest - TEMP_BIAS)
    values[I_TMIN] = float(coldest - TEMP_BIAS)


@compiled
def _is_silent(p: F64, s: F64, now_s: int) -> bool:
    """Does the vehicle say nothing at this second: parked and asleep, or burnt?"""
    if s[S_BURNT_S] > 0.0 and now_s - s[S_BURNT_S] > BURN_REPORTS_S:
        return True
    asleep = p[P_SLEEP_S] > 0.0 and s[S_MODE] == PARKED and now_s - s[S_BEGUN_S] > p[P_SLEEP_S]
    return bool(asleep and s[S_PLUGGED] == 0.0 and s[S_BURNT_S] == 0.0)


@compiled
def trace(
    params: F64, seed: int, first: int, bounds: I64, times: I64, states: F64, now: I64, events: F64, counters: F64
) -> int:
    """Counters (n, COUNTERS) of vehicle v at ``times[bounds[v]:bounds[v + 1]]`` (rising).  Returns as ``look``."""
    count = 0
    for v in range(len(now)):
        for row in range(bounds[v], bounds[v + 1]):
            while now[v] < times[row]:
                count = step(params[v], states[v], now[v], seed, first + v, events, count)
                now[v] += 1
            _count(states[v], counters[row])
    return count


@compiled
def look(
    params: F64, offset_mv: F64, seed: int, first: int, bounds: I64, times: I64, states: F64, now: I64, events: F64,
    num: I32, state: U8, cells: U16, temps: U8, silent: U8,
) -> int:  # fmt: skip
    """Report vehicle v at ``times[bounds[v]:bounds[v + 1]]`` (rising), one output line per time.

    Returns the number of events written.  ``events`` must hold what ``model.events_max`` says.
    """
    count = 0
    # one loop turns values into integers: sixty conversions in line cost seconds of compile time
    values = np.empty(_SIGNALS)
    for v in range(len(now)):
        for row in range(bounds[v], bounds[v + 1]):
            while now[v] < times[row]:
                count = step(params[v], states[v], now[v], seed, first + v, events, count)
                now[v] += 1
            observe(
                params[v], states[v], offset_mv[v], times[row], seed, first + v,
                values, cells[row], temps[row],
            )  # fmt: skip
            silent[row] = _is_silent(params[v], states[v], times[row])
            for signal in range(_SIGNALS):
                here = values[signal] != ABSENT
                num[row, signal] = np.int32(math.floor(values[signal] + 0.5)) if here else 0
                state[row, signal] = VALID if here else 0
    return count
