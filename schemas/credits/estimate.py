"""What the dual credit of an enterprise comes to, in decimal arithmetic.  An estimate, and it says so.

In: the rules of a year, models with their type-approval values and counts.  Out: credits of each model, of the
enterprise, and every figure on the way that is not confirmed.  Telemetry never enters.  What is missing counts as a
factor of 1 and is named; what cannot be computed without it is None, never a guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal, localcontext
from typing import Final

from schemas.credits.rules import UNCONFIRMED, Band, BevRule, Cell, Segment, YearRules

ONE: Final = Decimal(1)
ZERO: Final = Decimal(0)
_CENTS: Final = Decimal("0.01")
_DIGITS: Final = 50
CONVENTIONAL: Final = "ICE"
POWERTRAINS: Final = ("BEV", "PHEV", "FCV", CONVENTIONAL)
COUNT_MAX: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class ModelLine:
    """A model and how many of it were made or imported.  Values of the type approval; None: not known.

    ``consumption``: electricity, kWh/100 km.  ``fuel`` and ``target``: L/100 km, combined and the model's target.
    ``low_consumption``: a conventional car said to be one.  ``conditions_met``: of a PHEV, said so.
    """

    model: str
    count: int
    powertrain: str
    electric_range_km: Decimal | None = None
    kerb_mass_kg: Decimal | None = None
    energy_density: Decimal | None = None
    consumption: Decimal | None = None
    fuel: Decimal | None = None
    fuel_cell_kw: Decimal | None = None
    target: Decimal | None = None
    low_consumption: bool | None = None
    conditions_met: bool | None = None


@dataclass(frozen=True, slots=True)
class Doubt:
    """Something that an answer rests on and that is not confirmed: a cell with tag C or D, or a missing input."""

    what: str
    why: str
    tag: str | None = None
    value: Decimal | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class Alternative:
    """What one source would have the credit be."""

    rule: str
    credit: Decimal
    tag: str
    source: str


@dataclass(slots=True)
class VehicleCredit:
    """Credits of one vehicle.  ``credit`` None: cannot be computed, or the sources differ (``alternatives``).

    ``standard`` is after the cap and not rounded; ``condition_factor`` of a PHEV.  ``low``, ``high``: the range that
    the credit lies in, equal to it when there is one, None when nothing can be said.
    """

    standard: Decimal | None = None
    range_factor: Decimal = ONE
    density_factor: Decimal = ONE
    consumption_factor: Decimal = ONE
    condition_factor: Decimal = ONE
    credit: Decimal | None = None
    capped: bool = False
    alternatives: list[Alternative] = field(default_factory=list)
    unconfirmed: list[Doubt] = field(default_factory=list)
    used: list[Cell] = field(default_factory=list)

    @property
    def low(self) -> Decimal | None:
        return min((one.credit for one in self.alternatives), default=self.credit)

    @property
    def high(self) -> Decimal | None:
        return max((one.credit for one in self.alternatives), default=self.credit)

    def use(self, cell: Cell) -> Decimal:
        """The value of ``cell``, noted, and among the doubts when it is not confirmed."""
        self.used.append(cell)
        if cell.tag in UNCONFIRMED:
            self.unconfirmed.append(doubt(cell))
        return cell.value

    def missing(self, what: str, why: str) -> None:
        self.unconfirmed.append(Doubt(what, why))


def doubt(cell: Cell) -> Doubt:
    why = "one secondary source only" if cell.tag == "C" else "seen in no source"
    return Doubt(cell.name, f"{why}{'; ' + cell.note if cell.note else ''}", cell.tag, cell.value, cell.source)


def half_up(value: Decimal, step: Decimal = _CENTS) -> Decimal:
    """Rounded half away from zero, as in commerce: 0.575 is 0.58."""
    with localcontext() as context:
        context.prec = _DIGITS
        return value.quantize(step, ROUND_HALF_UP)


# -- a vehicle ----------------------------------------------------------------------------------------------------
def vehicle_credit(rules: YearRules, line: ModelLine) -> VehicleCredit:
    """The credit of one vehicle of ``line``; a conventional car has none (0)."""
    made = VehicleCredit()
    with localcontext() as context:
        context.prec = _DIGITS
        if line.powertrain == "BEV":
            _bev(rules, line, made)
        elif line.powertrain == "PHEV":
            _phev(rules, line, made)
        elif line.powertrain == "FCV":
            _fcv(rules, line, made)
        else:
            made.standard = made.credit = ZERO
    return made


def _bev(rules: YearRules, line: ModelLine, made: VehicleCredit) -> None:
    rule = rules.vehicle.bev
    reach = line.electric_range_km
    if reach is None:
        made.missing("electric_range_km", "missing: without it a BEV has no standard credit")
        return
    if reach < made.use(rule.first_km):
        made.standard = made.credit = ZERO
        return
    made.density_factor = _density(rule, line, made)
    made.consumption_factor = _consumption(rule, line, made)
    others = made.density_factor * made.consumption_factor
    range_factor = _banded(rule.range_factor, reach)
    if rule.disputed is not None and rule.disputed.begin <= reach < rule.disputed.below:
        disputed = rule.disputed
        segment = _segment(rule.lines, reach)
        assert segment is not None, "a table without a gap"
        by_line = min(segment.slope.value * reach + segment.constant.value, rule.cap.value)
        factor = range_factor.value if range_factor is not None else ONE
        for text, credit, cell in (
            (f"the formula × {factor}", by_line * factor, disputed.line),
            ("a flat credit", disputed.flat.value, disputed.flat),
        ):
            made.alternatives.append(Alternative(text, _rounded(rules, credit * others, made), cell.tag, cell.source))
        made.missing(
            f"standard credit from {disputed.begin} to below {disputed.below} km",
            "the sources differ: see alternatives",
        )
        return
    standard = _along(rule.lines, reach, made)
    assert standard is not None, "a table without a gap"
    cap = rule.cap.value
    if standard > cap:
        standard, made.capped = made.use(rule.cap), True
    made.standard = standard
    made.range_factor = ONE if range_factor is None else made.use(range_factor)
    made.credit = _rounded(rules, standard * made.range_factor * others, made)


def _density(rule: BevRule, line: ModelLine, made: VehicleCredit) -> Decimal:
    if not rule.density_factor:
        return ONE
    if line.energy_density is None:
        made.missing("energy_density_wh_per_kg", "missing: its factor is taken as 1")
        return ONE
    band = _banded(rule.density_factor, line.energy_density)
    assert band is not None, "a table without a gap"
    return made.use(band)


def _consumption(rule: BevRule, line: ModelLine, made: VehicleCredit) -> Decimal:
    by = rule.consumption
    if not by.targets:
        made.missing("consumption target", "the targets of this year were not seen: the factor is taken as 1")
        return ONE
    absent = [
        name for name, value in (("kerb_mass_kg", line.kerb_mass_kg), ("certified_kwh_per_100km", line.consumption))
        if value is None
    ]  # fmt: skip
    for name in absent:
        made.missing(name, "missing: the consumption factor is taken as 1")
    if absent or line.kerb_mass_kg is None or line.consumption is None:
        return ONE
    target = _along(by.targets, line.kerb_mass_kg, made)
    assert target is not None, "a table without a gap"
    if by.kind == "classes":
        assert by.best is not None
        assert by.best_share is not None
        assert by.good is not None
        if line.consumption <= target * made.use(by.best_share):
            return made.use(by.best)
        return made.use(by.good if line.consumption <= target else by.poor)
    assert by.most is not None
    if line.consumption > target:
        return made.use(by.poor)
    most = by.most.value
    if line.consumption * most <= target:
        return made.use(by.most)
    return target / line.consumption


def _phev(rules: YearRules, line: ModelLine, made: VehicleCredit) -> None:
    rule = rules.vehicle.phev
    if rule is None:
        made.missing("phev", f"no rule for a PHEV was found for {rules.year}")
        return
    made.standard = made.use(rule.standard)
    met = line.conditions_met
    if met is None:
        if line.electric_range_km is None:
            made.missing("electric_range_km", "missing: the conditions of a PHEV are taken as met")
        elif line.electric_range_km < made.use(rule.range_from_km):
            met = False
        if met is None:
            made.missing("conditions_met", "consumption in charge-sustaining mode is not judged; taken as met")
    if met is False:
        made.condition_factor = made.use(rule.missed)
    made.credit = _rounded(rules, made.standard * made.condition_factor, made)


def _fcv(rules: YearRules, line: ModelLine, made: VehicleCredit) -> None:
    rule = rules.vehicle.fcv
    if rule is None:
        made.missing("fcv", f"no rule for an FCV was found for {rules.year}")
        return
    if line.fuel_cell_kw is None:
        made.missing("fuel_cell_kw", "missing: without it an FCV has no standard credit")
        return
    standard = made.use(rule.slope) * line.fuel_cell_kw
    if standard > rule.cap.value:
        standard, made.capped = made.use(rule.cap), True
    made.standard = standard
    made.credit = _rounded(rules, standard, made)


def _banded(bands: Sequence[Band], x: Decimal) -> Cell | None:
    return next((band.factor for band in bands if band.below is None or x < band.below), None)


def _segment(segments: Sequence[Segment], x: Decimal) -> Segment | None:
    return next((segment for segment in segments if segment.holds(x)), None)


def _along(segments: Sequence[Segment], x: Decimal, made: VehicleCredit) -> Decimal | None:
    segment = _segment(segments, x)
    return None if segment is None else made.use(segment.slope) * x + made.use(segment.constant)


def _rounded(rules: YearRules, credit: Decimal, made: VehicleCredit) -> Decimal:
    decimals = rules.vehicle.decimals
    if decimals not in made.used:
        made.use(decimals)
    return half_up(credit, ONE.scaleb(-int(decimals.value)))


# -- an enterprise ------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class Nev:
    """NEV credits of an enterprise.  ``actual`` and ``balance`` None when not one figure; then low and high."""

    actual: Decimal | None
    actual_low: Decimal | None
    actual_high: Decimal | None
    ratio: Decimal
    normal: int
    low: int
    low_weight: Decimal
    duty_from: Decimal
    duty: bool
    target: Decimal
    balance: Decimal | None
    balance_low: Decimal | None
    balance_high: Decimal | None


@dataclass(slots=True)
class Cafc:
    """Average fuel consumption.  None: cannot be computed (``missing`` says why).  L/100 km, and credits.

    ``fuel_sum`` Σ fuel·vehicles and ``weight_sum`` Σ vehicles·weight: what sub-fleets are added up by.
    """

    vehicles: int
    fuel_sum: Decimal | None
    weight_sum: Decimal
    cafc: Decimal | None
    target: Decimal | None
    factor: Decimal | None
    eased_by: Decimal
    required: Decimal | None
    credit: Decimal | None
    missing: list[str]


@dataclass(slots=True)
class Estimate:
    """Of one enterprise and year."""

    year: int
    enterprise: str | None
    models: list[tuple[ModelLine, VehicleCredit]]
    nev: Nev
    cafc: Cafc | None
    unconfirmed: list[tuple[Doubt, list[str]]]  # with the models that rest on it; none: the enterprise


def estimate(
    rules: YearRules,
    lines: Sequence[ModelLine],
    *,
    normal: int = 0,
    low: int = 0,
    cafc_before: Decimal | None = None,
    enterprise: str | None = None,
) -> Estimate:
    """NEV and CAFC credits of an enterprise.

    ``normal``, ``low``: conventional cars, and low-consumption ones, beside those among ``lines`` (known by number
    only: then CAFC cannot be computed).  ``cafc_before``: CAFC of the year before, for makers of few vehicles.
    """
    doubts = _Doubts()
    models = [(line, vehicle_credit(rules, line)) for line in lines]
    for line, credit in models:
        for found in credit.unconfirmed:
            doubts.add(found, line.model)
    with localcontext() as context:
        context.prec = _DIGITS
        lows = [line for line in lines if line.powertrain == CONVENTIONAL and _is_low(rules, line, doubts)]
        conventional = sum(line.count for line in lines if line.powertrain == CONVENTIONAL)
        low_count = low + sum(line.count for line in lows)
        nev = _nev(rules, models, normal + low + conventional - low_count, low_count, doubts)
        cafc = None
        if rules.cafc is None:
            doubts.add(Doubt("cafc", f"no rule for CAFC in {rules.year}: the numbers of its standard were not seen"))
        else:
            cafc = _cafc(rules, lines, lows, normal + low, cafc_before, doubts)
    return Estimate(rules.year, enterprise, models, nev, cafc, doubts.found)


class _Doubts:
    """Doubts, each once, with the models that rest on them."""

    def __init__(self) -> None:
        self._at: dict[Doubt, list[str]] = {}

    def add(self, found: Doubt, model: str | None = None) -> None:
        models = self._at.setdefault(found, [])
        if model is not None and model not in models:
            models.append(model)

    def use(self, cell: Cell) -> Decimal:
        if cell.tag in UNCONFIRMED:
            self.add(doubt(cell))
        return cell.value

    @property
    def found(self) -> list[tuple[Doubt, list[str]]]:
        return list(self._at.items())


def _is_low(rules: YearRules, line: ModelLine, doubts: _Doubts) -> bool:
    """Whether a conventional car is one of low consumption: at most target × factor of the year, to 2 decimals."""
    if line.low_consumption is not None:
        return line.low_consumption
    cafc = rules.cafc
    target = _target(rules, line, doubts)
    if cafc is None or cafc.factor is None or target is None or line.fuel is None:
        doubts.add(
            Doubt("low_consumption", "cannot be judged without fuel, target and factor: taken as no"), line.model
        )
        return False
    return line.fuel <= half_up(target * doubts.use(cafc.factor))


def _target(rules: YearRules, line: ModelLine, doubts: _Doubts) -> Decimal | None:
    """The model's target of fuel consumption: given, or by its mass where the table has lines."""
    if line.target is not None or rules.cafc is None or line.kerb_mass_kg is None:
        return line.target
    segment = _segment(rules.cafc.targets, line.kerb_mass_kg)
    if segment is None:
        return None
    return doubts.use(segment.slope) * line.kerb_mass_kg + doubts.use(segment.constant)


def _nev(
    rules: YearRules, models: Sequence[tuple[ModelLine, VehicleCredit]], normal: int, low: int, doubts: _Doubts
) -> Nev:
    rule = rules.nev
    ratio, duty_from = doubts.use(rule.ratio), doubts.use(rule.duty_from)
    weight = doubts.use(rule.low_weight) if low else rule.low_weight.value
    duty = normal + low >= duty_from
    target = ratio * (normal + weight * low) if duty else ZERO
    counted = [(line.count, credit) for line, credit in models if line.count]

    def total(values: Iterable[tuple[int, Decimal | None]]) -> Decimal | None:
        parts = [None if value is None else count * value for count, value in values]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else sum(known, ZERO)

    actual = total((count, credit.credit) for count, credit in counted)
    least = total((count, credit.low) for count, credit in counted)
    most = total((count, credit.high) for count, credit in counted)

    def over(value: Decimal | None) -> Decimal | None:
        return None if value is None else value - target

    return Nev(
        actual, least, most, ratio, normal, low, weight, duty_from, duty, target, over(actual), over(least), over(most)
    )


def _cafc(
    rules: YearRules, lines: Sequence[ModelLine], lows: Sequence[ModelLine], unnamed: int, before: Decimal | None,
    doubts: _Doubts,
) -> Cafc:  # fmt: skip
    rule = rules.cafc
    assert rule is not None
    missing: list[str] = []
    fuel_sum, weight_sum, target_sum, vehicles = ZERO, ZERO, ZERO, 0
    if unnamed:
        missing.append(f"fuel and targets of {unnamed} conventional cars that are given by number only")
    for line in lines:
        if not line.count:
            continue
        vehicles += line.count
        electric = line.powertrain in ("BEV", "FCV")
        fuel = doubts.use(rule.nev_fuel) if electric else line.fuel
        if fuel is None:
            missing.append(f"fuel_l_per_100km of {line.model}")
        else:
            fuel_sum += fuel * line.count
        weight_sum += line.count * _weight(rules, line, line in lows, doubts)
        target = _target(rules, line, doubts)
        if target is None:
            missing.append(f"target_l_per_100km of {line.model}")
        else:
            target_sum += target * line.count
    fuels_known = not any(text.startswith("fuel") for text in missing)
    cafc = fuel_sum / weight_sum if fuels_known and weight_sum else None
    known = not missing and vehicles > 0
    target = target_sum / vehicles if known else None
    if rule.factor is None:
        missing.append(f"the factor of {rules.year}, which was not seen")
    factor = None if rule.factor is None else doubts.use(rule.factor)
    eased = _eased(rules, vehicles + unnamed, cafc, before, doubts)
    required = None if target is None or factor is None else factor * target * (1 + eased)
    credit = None if required is None or cafc is None else (required - cafc) * vehicles
    if not vehicles:
        missing.append("vehicles")
    return Cafc(
        vehicles, fuel_sum if fuels_known else None, weight_sum, cafc, target, factor, eased, required, credit, missing
    )


def _weight(rules: YearRules, line: ModelLine, low: bool, doubts: _Doubts) -> Decimal:
    rule = rules.cafc
    assert rule is not None
    if line.powertrain in ("BEV", "FCV"):
        return doubts.use(rule.nev_weight)
    if line.powertrain == "PHEV":
        phev = rules.vehicle.phev
        reach = line.electric_range_km
        too_short = phev is not None and reach is not None and reach < phev.range_from_km.value
        missed = line.conditions_met is False or (line.conditions_met is None and too_short)
        return ONE if missed else doubts.use(rule.nev_weight)
    if not low:
        return ONE
    if rule.low_weight is None:
        doubts.add(Doubt("cafc.low_weight", f"not seen for {rules.year}: taken as 1"))
        return ONE
    return doubts.use(rule.low_weight)


def _eased(rules: YearRules, vehicles: int, cafc: Decimal | None, before: Decimal | None, doubts: _Doubts) -> Decimal:
    """Share by which the target of a maker of few vehicles is eased."""
    assert rules.cafc is not None
    small = rules.cafc.small
    if small is None or vehicles >= small.below.value or not vehicles:
        return ZERO
    if before is None or before <= 0 or cafc is None:
        doubts.add(Doubt("cafc_before", "missing: a maker of few vehicles may have its target eased"))
        return ZERO
    fall = (before - cafc) / before
    return next((doubts.use(ease) for least, ease in small.steps if fall >= doubts.use(least)), ZERO)


# -- several enterprises ------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Part:
    """An enterprise, or a group of them, to add up.  ``fuel_sum``, ``weight_sum`` as in :class:`Cafc`."""

    vehicles: Decimal
    mass_kg: Decimal | None = None
    cafc_positive: Decimal = ZERO
    cafc_negative: Decimal = ZERO
    nev_positive: Decimal = ZERO
    nev_negative: Decimal = ZERO
    fuel_sum: Decimal | None = None
    weight_sum: Decimal | None = None


@dataclass(frozen=True, slots=True)
class Total:
    """Sums of parts.  Positive and negative credits apart: they belong to different enterprises, never netted.

    ``mass_kg`` is the mean by vehicles.  ``cafc`` needs Σ fuel·vehicles and Σ vehicles·weight of every part: a mean
    of their CAFC by vehicles is another figure (4.12 instead of 4.11 for 2022).
    """

    vehicles: Decimal
    mass_kg: Decimal | None
    cafc: Decimal | None
    cafc_positive: Decimal
    cafc_negative: Decimal
    nev_positive: Decimal
    nev_negative: Decimal


def combine(parts: Sequence[Part]) -> Total:
    """The sums of ``parts``."""
    with localcontext() as context:
        context.prec = _DIGITS
        vehicles = sum((part.vehicles for part in parts), ZERO)
        masses = [part.mass_kg * part.vehicles for part in parts if part.mass_kg is not None]
        fuels = [part.fuel_sum for part in parts if part.fuel_sum is not None]
        weights = [part.weight_sum for part in parts if part.weight_sum is not None]
        whole = len(fuels) == len(weights) == len(parts) and sum(weights, ZERO) > 0
        return Total(
            vehicles,
            sum(masses, ZERO) / vehicles if len(masses) == len(parts) and vehicles else None,
            sum(fuels, ZERO) / sum(weights, ZERO) if whole else None,
            sum((part.cafc_positive for part in parts), ZERO),
            sum((part.cafc_negative for part in parts), ZERO),
            sum((part.nev_positive for part in parts), ZERO),
            sum((part.nev_negative for part in parts), ZERO),
        )


def part_of(made: Estimate) -> Part:
    """An estimate as a part of a total; credits that are not one figure are left out."""
    nev, cafc = made.nev.balance, made.cafc
    credit = None if cafc is None else cafc.credit
    masses = [(line.count, line.kerb_mass_kg) for line, _ in made.models if line.count]
    vehicles = Decimal(sum(count for count, _ in masses) + made.nev.normal + made.nev.low) - sum(
        line.count for line, _ in made.models if line.powertrain == CONVENTIONAL
    )
    whole = bool(masses) and all(mass is not None for _, mass in masses) and vehicles == sum(n for n, _ in masses)
    return Part(
        vehicles,
        sum((count * mass for count, mass in masses if mass is not None), ZERO) / vehicles if whole else None,
        max(credit, ZERO) if credit is not None else ZERO,
        min(credit, ZERO) if credit is not None else ZERO,
        max(nev, ZERO) if nev is not None else ZERO,
        min(nev, ZERO) if nev is not None else ZERO,
        None if cafc is None else cafc.fuel_sum,
        None if cafc is None else cafc.weight_sum,
    )
