"""The dual credit against the vectors of the statistics specification and the official totals of 2022."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.credits.estimate import (
    ModelLine,
    Part,
    VehicleCredit,
    combine,
    estimate,
    half_up,
    part_of,
    vehicle_credit,
)
from schemas.credits.rules import NoRule, built_in, read_rules

D = Decimal
RULES = built_in()


def credit(year: int, reach: Any = None, powertrain: str = "BEV", **more: Any) -> VehicleCredit:
    values = {name: D(str(value)) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
              for name, value in more.items()}  # fmt: skip
    reach = None if reach is None else D(str(reach))
    return vehicle_credit(RULES.of(year), ModelLine("m", 1, powertrain, electric_range_km=reach, **values))


# Standard credit by range: value not rounded, rounded, capped. From the specification's table.
STANDARD = [
    (2019, 99, "0", "0", False), (2019, 100, "2.00", "2.00", False), (2019, 150, "2.60", "2.60", False),
    (2019, 200, "3.20", "3.20", False), (2019, 250, "3.80", "3.80", False), (2019, 300, "4.40", "4.40", False),
    (2019, 400, "5", "5", True), (2019, 500, "5", "5", True), (2019, 535, "5", "5", True), (2019, 536, "5", "5", True),
    (2019, 617, "5", "5", True), (2019, 618, "5", "5", True),
    (2022, 99, "0", "0", False), (2022, 150, "1.24", "1.24", False), (2022, 200, "1.52", "1.52", False),
    (2022, 250, "1.80", "1.80", False), (2022, 300, "2.08", "2.08", False), (2022, 400, "2.64", "2.64", False),
    (2022, 500, "3.20", "3.20", False), (2022, 535, "3.396", "3.40", False), (2022, 536, "3.4", "3.4", True),
    (2022, 617, "3.4", "3.4", True), (2022, 618, "3.4", "3.4", True),
    (2024, 99, "0", "0", False), (2024, 100, "0.60", "0.60", False), (2024, 150, "0.71", "0.71", False),
    (2024, 200, "0.88", "0.88", False), (2024, 250, "1.05", "1.05", False), (2024, 300, "1.22", "1.22", False),
    (2024, 400, "1.56", "1.56", False), (2024, 500, "1.90", "1.90", False), (2024, 535, "2.019", "2.02", False),
    (2024, 536, "2.0224", "2.02", False), (2024, 617, "2.2978", "2.30", False), (2024, 618, "2.3", "2.3", True),
    (2026, 99, "0", "0", False), (2026, 100, "0.30", "0.30", False), (2026, 150, "0.405", "0.41", False),
    (2026, 200, "0.49", "0.49", False), (2026, 250, "0.575", "0.58", False), (2026, 300, "0.66", "0.66", False),
    (2026, 400, "0.83", "0.83", False), (2026, 500, "1.00", "1.00", False), (2026, 535, "1.0595", "1.06", False),
    (2026, 536, "1.0612", "1.06", False), (2026, 617, "1.1989", "1.20", False), (2026, 618, "1.2", "1.2", True),
]  # fmt: skip


@pytest.mark.parametrize(("year", "reach", "standard", "rounded", "capped"), STANDARD)
def test_standard_credit(year: int, reach: int, standard: str, rounded: str, capped: bool) -> None:
    made = credit(year, reach)
    assert made.standard == D(standard)
    assert half_up(made.standard) == D(rounded)
    assert made.capped is capped


@pytest.mark.parametrize(
    ("reach", "credited"),
    [(99, "0"), (150, "0.99"), (200, "1.37"), (250, "1.62"), (300, "2.08"), (400, "2.64"), (500, "3.20"),
     (535, "3.40"), (536, "3.4"), (617, "3.4"), (618, "3.4")],
)  # fmt: skip
def test_2022_with_the_range_factor(reach: int, credited: str) -> None:
    assert credit(2022, reach).credit == D(credited)


@pytest.mark.parametrize("reach", [100, 120, 149.9])
@pytest.mark.parametrize("year", [2021, 2022, 2023])
def test_where_sources_differ_there_is_no_one_credit(year: int, reach: float) -> None:
    made = credit(year, reach)
    assert (made.standard, made.credit) == (None, None)
    by_line = half_up((D("0.0056") * D(str(reach)) + D("0.4")) * D("0.7"))
    assert [(one.credit, one.tag) for one in made.alternatives] == [(by_line, "C"), (D("1.00"), "D")]
    assert (made.low, made.high) == (by_line, D("1.00"))
    assert any("the sources differ" in found.why for found in made.unconfirmed)


def test_the_range_factor_of_other_years() -> None:
    assert [credit(2026, r).credit for r in (100, 149, 150, 199, 200, 299, 300)] == [
        D("0.21"), D("0.21"), D("0.32"), D("0.39"), D("0.44"), D("0.59"), D("0.66")
    ]  # fmt: skip
    assert credit(2024, 100).credit == D("0.42")
    assert credit(2019, 120).range_factor == 1


def test_half_up_and_not_as_a_binary_float_would() -> None:
    assert half_up(D("0.575")) == D("0.58")
    assert round(0.575, 2) == 0.57
    assert half_up(D("-0.575")) == D("-0.58")
    assert half_up(D("2.5"), D(1)) == 3


@pytest.mark.parametrize(
    ("year", "phev", "fcv_100", "fcv_20"),
    [(2019, "2", "5", "3.20"), (2022, "1.6", "6", "1.60"), (2024, "1.0", "4", "1.00"), (2026, "0.5", None, None)],
)
def test_phev_and_fcv(year: int, phev: str, fcv_100: str | None, fcv_20: str | None) -> None:
    assert credit(year, 43, "PHEV").credit == D(phev)
    assert credit(year, 80, "PHEV", conditions_met=False).credit == D(phev) / 2
    short = credit(year, 42.9, "PHEV")
    assert (short.credit, short.condition_factor) == (D(phev) / 2, D("0.5"))
    assert credit(year, 42.9, "PHEV", conditions_met=True).credit == D(phev)
    for power, told in ((100, fcv_100), (20, fcv_20)):
        made = credit(year, powertrain="FCV", fuel_cell_kw=power)
        assert made.credit == (None if told is None else D(told))
        assert made.capped is (power == 100 and told is not None)
    assert credit(year, powertrain="FCV").credit is None


@pytest.mark.parametrize(
    ("density", "factor"), [(89.9, "0"), (90, "0.8"), (104.9, "0.8"), (105, "0.9"), (124.9, "0.9"), (125, "1.0")]
)
def test_density_factor(density: float, factor: str) -> None:
    made = credit(2022, 400, energy_density=density)
    assert made.density_factor == D(factor)
    assert made.credit == half_up(D("2.64") * D(factor))
    assert credit(2019, 400, energy_density=density).density_factor == 1


@pytest.mark.parametrize(
    ("mass", "consumption", "factor"),
    [
        (1000, "11.6", "1"),  # 0.0112 × 1000 + 0.4 = 11.6, up to and with 1000 kg
        (1000, "11.7", "0.5"), (1600, "16.28", "1"),  # 0.0078 × 1600 + 3.8
        (1700, "16.76", "1"),  # 0.0048 × 1700 + 8.6
        (1700, "8.38", "1.5"), (1700, "11.17", "1.5"), (1700, "12.57", None), (1700, "16.77", "0.5"),
    ],
)  # fmt: skip
def test_consumption_factor_of_2021_to_2023(mass: int, consumption: str, factor: str | None) -> None:
    made = credit(2022, 300, kerb_mass_kg=mass, consumption=D(consumption))
    wanted = D("16.76") / D(consumption) if factor is None else D(factor)
    assert abs(made.consumption_factor - wanted) < D("1e-25")
    assert made.credit == half_up(D("2.08") * wanted)


@pytest.mark.parametrize(
    ("mass", "consumption", "credited"),
    [(1000, "14.5", "4.40"), (1000, "14.51", "2.20"), (1000, "10.15", "5.28"), (1600, "21.7", "4.40"),
     (2000, "23.7", "4.40"), (2000, "16.59", "5.28")],
)  # fmt: skip
def test_consumption_classes_of_2018_to_2020(mass: int, consumption: str, credited: str) -> None:
    assert credit(2019, 300, kerb_mass_kg=mass, consumption=D(consumption)).credit == D(credited)


def test_at_most_six_credits_until_2020_as_the_cap_comes_before_the_factors() -> None:
    made = credit(2020, 700, kerb_mass_kg=1000, consumption=1)
    assert (made.standard, made.credit, made.capped) == (5, 6, True)


def test_what_is_missing_counts_as_one_and_is_named() -> None:
    made = credit(2022, 400)
    named = {found.what for found in made.unconfirmed}
    assert {"energy_density_wh_per_kg", "kerb_mass_kg", "certified_kwh_per_100km"} <= named
    assert (made.density_factor, made.consumption_factor, made.credit) == (1, 1, D("2.64"))
    later = credit(2026, 400, kerb_mass_kg=1500, consumption=12)
    assert later.consumption_factor == 1
    assert "consumption target" in {found.what for found in later.unconfirmed}
    none = credit(2022)
    assert none.credit is None
    assert [found.what for found in none.unconfirmed] == ["electric_range_km"]


def test_figures_that_are_not_confirmed_are_listed_and_others_are_not() -> None:
    made = credit(2022, 400, energy_density=130, kerb_mass_kg=1500, consumption=14)
    found = {doubt.what: doubt.tag for doubt in made.unconfirmed}
    assert found == {
        "vehicle 2021-2023.bev.lines[0].constant": "C", "vehicle 2021-2023.bev.density_factor[3]": "D",
        "vehicle 2021-2023.bev.consumption.targets[1].slope": "D",
        "vehicle 2021-2023.bev.consumption.targets[1].constant": "D", "vehicle 2021-2023.round.decimals": "C",
    }  # fmt: skip
    assert "vehicle 2021-2023.bev.lines[0].slope" in {cell.name for cell in made.used}


@pytest.mark.parametrize("year", [2016, 2017, 2028, 2030, 1, 99_999])
def test_no_rule_for_other_years(year: int) -> None:
    with pytest.raises(NoRule, match=f"no rule for {year}"):
        RULES.of(year)


# -- enterprises --------------------------------------------------------------------------------------------------
RATIOS = {2019: "0.10", 2020: "0.12", 2021: "0.14", 2022: "0.16", 2023: "0.18", 2024: "0.28", 2025: "0.38",
          2026: "0.48", 2027: "0.58"}  # fmt: skip
WEIGHTS = {2021: "0.5", 2022: "0.3", 2023: "0.2", 2024: "0.2", 2025: "0.2", 2026: "0.1", 2027: "0.1"}


@pytest.mark.parametrize("year", range(2018, 2028))
def test_required_ratio_and_weight_of_low_consumption_cars(year: int) -> None:
    made = estimate(RULES.of(year), [], normal=100_000, low=20_000).nev
    ratio, weight = D(RATIOS.get(year, "0")), D(WEIGHTS.get(year, "1"))
    assert made.target == ratio * (100_000 + weight * 20_000)
    assert made.balance == -made.target
    assert made.duty


def test_the_duty_begins_at_thirty_thousand_conventional_cars() -> None:
    rules = RULES.of(2024)
    assert estimate(rules, [], normal=29_000, low=999).nev.target == 0
    assert estimate(rules, [], normal=29_000, low=1_000).nev.target == D("0.28") * (29_000 + 200)
    ice = ModelLine("petrol", 30_000, "ICE")
    made = estimate(rules, [ice])
    assert (made.nev.duty, made.nev.normal, made.nev.target) == (True, 30_000, D("8400.00"))


def test_balance_of_an_enterprise() -> None:
    lines = [
        ModelLine("a", 10_000, "BEV", electric_range_km=D(500), energy_density=D(160)),
        ModelLine("b", 5_000, "PHEV", electric_range_km=D(60)),
        ModelLine("none made", 0, "FCV"),
    ]
    nev = estimate(RULES.of(2024), lines, normal=40_000).nev
    assert nev.actual == 10_000 * D("1.90") + 5_000 * D("1.0") == 24_000
    assert nev.target == D("0.28") * 40_000 == 11_200
    assert nev.balance == 12_800


def test_disputed_credits_give_a_range() -> None:
    lines = [ModelLine("a", 1000, "BEV", electric_range_km=D(120)), ModelLine("b", 10, "BEV", electric_range_km=D(300))]
    nev = estimate(RULES.of(2022), lines, normal=30_000).nev
    assert (nev.actual, nev.balance) == (None, None)
    assert (nev.actual_low, nev.actual_high) == (1000 * D("0.75") + D("20.8"), 1000 + D("20.8"))
    assert nev.balance_low == nev.actual_low - 4800
    nothing = estimate(RULES.of(2022), [ModelLine("c", 1, "BEV")]).nev
    assert (nothing.actual, nothing.actual_low, nothing.balance_high) == (None, None, None)


ICE = {"target": D("5.0"), "kerb_mass_kg": D(1500)}


def test_cafc_has_the_weight_in_the_denominator() -> None:
    """Σ fuel·vehicles ÷ Σ vehicles·weight; target and credit by vehicles."""
    lines = [
        ModelLine("petrol", 800, "ICE", fuel=D("6.5"), **ICE),
        ModelLine("saver", 100, "ICE", fuel=D("5.5"), **ICE),  # 5.5 <= 5.0 × 1.23 = 6.15: low consumption
        ModelLine("bev", 60, "BEV", electric_range_km=D(400), target=D("5.0")),
        ModelLine("phev", 30, "PHEV", electric_range_km=D(60), fuel=D("1.5"), target=D("5.0")),
        ModelLine("short phev", 10, "PHEV", electric_range_km=D(30), fuel=D(3), target=D("5.0")),
    ]
    made = estimate(RULES.of(2021), lines)
    cafc = made.cafc
    assert cafc is not None
    assert (made.nev.normal, made.nev.low) == (800, 100)
    assert cafc.fuel_sum == 800 * D("6.5") + 100 * D("5.5") + 30 * D("1.5") + 10 * 3 == D(5825)
    assert cafc.weight_sum == 800 + D("1.4") * 100 + 2 * 60 + 2 * 30 + 10 == 1130
    assert cafc.cafc is not None
    assert half_up(cafc.cafc) == D("5.15")
    assert cafc.required == D("6.15")
    assert cafc.credit is not None
    assert abs(cafc.credit - (D("6.15") - D(5825) / 1130) * 1000) < D("1e-20")


@pytest.mark.parametrize(
    ("year", "weight"),
    [(2018, 3), (2019, 3), (2020, 2), (2021, 2), (2022, "1.8"), (2023, "1.6"), (2024, "1.3"), (2025, 1)],
)
def test_weight_of_a_new_energy_vehicle(year: int, weight: Any) -> None:
    lines = [
        ModelLine("bev", 10, "BEV", electric_range_km=D(400), target=D(5)),
        ModelLine("fcv", 10, "FCV", target=D(5)),
    ]
    cafc = estimate(RULES.of(year), lines).cafc
    assert cafc is not None
    assert (cafc.weight_sum, cafc.cafc) == (20 * D(weight), 0)


@pytest.mark.parametrize(
    ("year", "factor"), [(2021, "1.23"), (2022, "1.20"), (2023, "1.15"), (2024, "1.08"), (2025, "1.00")]
)
def test_factor_of_the_year(year: int, factor: str) -> None:
    cafc = estimate(RULES.of(year), [ModelLine("p", 10_000, "ICE", fuel=D(7), target=D(5))]).cafc
    assert cafc is not None
    assert cafc.required == D(factor) * 5
    assert cafc.credit == (D(factor) * 5 - 7) * 10_000


def test_low_consumption_is_judged_with_two_decimals() -> None:
    """Target × factor is rounded to two decimals: 4.4444 × 1.08 = 4.799952 → 4.80."""
    for fuel, low in (("4.80", 1), ("4.81", 0)):
        line = ModelLine("p", 1, "ICE", fuel=D(fuel), target=D("4.4444"))
        assert estimate(RULES.of(2024), [line]).nev.low == low
    assert estimate(RULES.of(2024), [ModelLine("p", 1, "ICE", low_consumption=True)]).nev.low == 1
    unknown = estimate(RULES.of(2024), [ModelLine("p", 1, "ICE")])
    assert unknown.nev.low == 0
    assert any(found.what == "low_consumption" for found, _ in unknown.unconfirmed)


@pytest.mark.parametrize(
    ("year", "count", "before", "eased"),
    [
        (2024, 1999, "7.30", "0.6"), (2024, 1999, "7.2916", "0.3"), (2024, 1999, "7.1429", "0.3"),
        (2024, 1999, "7.1428", "0"), (2025, 1, "7.20", "0.3"),
        (2025, 1999, "7.14", "0"), (2024, 2000, "7.30", "0"), (2023, 1999, "7.30", "0"), (2024, 1999, None, "0"),
        (2024, 1999, "6.0", "0"),
    ],
)  # fmt: skip
def test_easing_for_makers_of_few_vehicles(year: int, count: int, before: str | None, eased: str) -> None:
    """Fall of CAFC (7.0 now): 4 % and more → 60 %, 2-4 % → 30 %, only in 2024-25 and below 2,000 vehicles."""
    line = ModelLine("p", count, "ICE", fuel=D(7), target=D(5))
    cafc = estimate(RULES.of(year), [line], cafc_before=None if before is None else D(before)).cafc
    assert cafc is not None
    assert cafc.eased_by == D(eased)
    assert cafc.factor is not None
    assert cafc.required == cafc.factor * 5 * (1 + D(eased))


def test_what_cafc_cannot_do_without() -> None:
    rules = RULES.of(2024)
    made = estimate(rules, [ModelLine("p", 10, "ICE", fuel=D(7))]).cafc
    assert made is not None
    assert (made.cafc, made.credit, made.missing) == (7, None, ["target_l_per_100km of p"])
    made = estimate(rules, [ModelLine("p", 10, "PHEV", target=D(5))]).cafc
    assert made is not None
    assert (made.cafc, made.credit, made.missing) == (None, None, ["fuel_l_per_100km of p"])
    made = estimate(rules, [ModelLine("b", 10, "BEV", target=D(5))], normal=5).cafc
    assert made is not None
    assert (made.cafc, made.credit) == (None, None)
    assert "5 conventional cars" in made.missing[0]
    early = estimate(RULES.of(2019), [ModelLine("p", 10, "ICE", fuel=D(7), target=D(5))]).cafc
    assert early is not None
    assert (early.cafc, early.credit) == (7, None)
    none = estimate(RULES.of(2026), [])
    assert none.cafc is None
    assert any("no rule for CAFC in 2026" in found.why for found, _ in none.unconfirmed)


def test_targets_by_mass_where_the_table_has_them() -> None:
    from schemas.credits.rules import built_in_text

    mine = 'tag = "A", source = "mine" }'
    line = f"{{ slope = {{ value = 0.001, {mine}, constant = {{ value = 3, {mine} }}"
    text = built_in_text().replace("[sources]", '[sources]\nmine = "read by me"').replace(
        'low_weight = { value = 1.1, tag = "D", source = "trade" }\ntargets = []',
        f'low_weight = {{ value = 1.1, tag = "D", source = "trade" }}\ntargets = [{line}]',
    )  # fmt: skip
    cafc = estimate(read_rules(text).of(2024), [ModelLine("p", 1000, "ICE", fuel=D(7), kerb_mass_kg=D(1500))]).cafc
    assert cafc is not None
    assert (cafc.target, cafc.required) == (D("4.5"), D("4.860"))


# -- the official totals of 2022 (announcement 14 of 2023), in 10⁴ ------------------------------------------------
DOMESTIC = Part(D("2097.13"), D(1560), D("3255.33"), D("-289.72"), D("1522.78"), D("-43.12"))
IMPORTED = Part(D("78.90"), D(1963), D("1.16"), D("-74.32"), D("1.30"), D("-3.14"))


def test_the_official_totals_of_2022_add_up() -> None:
    total = combine([DOMESTIC, IMPORTED])
    assert total.vehicles == D("2176.03")
    assert (total.cafc_positive, total.cafc_negative) == (D("3256.49"), D("-364.04"))
    assert (total.nev_positive, total.nev_negative) == (D("1524.08"), D("-46.26"))
    assert total.mass_kg is not None
    assert half_up(total.mass_kg, D(1)) == 1575


def test_cafc_is_no_mean_by_vehicles() -> None:
    """By vehicles 3.99 and 7.66 give 4.12; announced is 4.11: the denominator is Σ vehicles·weight."""
    domestic, imported = (D("2097.13"), D("3.99")), (D("78.90"), D("7.66"))
    by_vehicles = sum(n * c for n, c in (domestic, imported)) / (domestic[0] + imported[0])
    assert half_up(by_vehicles) == D("4.12")
    assert combine([DOMESTIC, IMPORTED]).cafc is None  # cannot be had from those figures

    # With 2022's weight of 1.8, parts that come to 3.99 and 7.66 come to 4.11 together: the domestic fleet has the
    # new energy vehicles, so its weight in the sum is more than its vehicles.
    def part(vehicles: D, cafc: D, new_energy: D) -> Part:
        weight = vehicles * (1 + new_energy * D("0.8"))
        return Part(vehicles, fuel_sum=cafc * weight, weight_sum=weight)

    together = combine([part(*domestic, D("0.30")), part(*imported, D("0.10"))])
    assert together.cafc is not None
    assert half_up(together.cafc) == D("4.11")


def test_positive_and_negative_credits_are_never_netted() -> None:
    total = combine([Part(D(1), nev_positive=D(10)), Part(D(1), nev_negative=D(-4))])
    assert (total.nev_positive, total.nev_negative) == (10, -4)


def test_estimates_add_up_as_parts() -> None:
    rules = RULES.of(2024)
    one = estimate(rules, [ModelLine("a", 50_000, "BEV", D(500), D(1800), target=D(5))])
    two = estimate(rules, [ModelLine("p", 50_000, "ICE", kerb_mass_kg=D(1400), fuel=D(7), target=D(5))])
    total = combine([part_of(one), part_of(two)])
    assert total.vehicles == 100_000
    assert total.mass_kg == 1600
    assert (total.nev_positive, total.nev_negative) == (95_000, -14_000)
    assert total.cafc is not None
    assert half_up(total.cafc) == D("3.04")  # 350,000 ÷ (1.3 × 50,000 + 50,000)
    assert (total.cafc_positive, total.cafc_negative) == (D("5.4") * 50_000, D("-1.6") * 50_000)
    by_number = part_of(estimate(rules, [], normal=40_000, low=10))
    assert (by_number.vehicles, by_number.mass_kg, by_number.fuel_sum) == (40_010, None, None)


@settings(max_examples=80, deadline=None)
@given(
    year=st.integers(2018, 2027), reach=st.none() | st.decimals(0, 2000, places=1),
    mass=st.none() | st.decimals(1, 5000, places=0), use=st.none() | st.decimals("0.1", 100, places=2),
    density=st.none() | st.decimals(0, 500, places=1), kind=st.sampled_from(["BEV", "PHEV", "FCV", "ICE"]),
    power=st.none() | st.decimals(0, 500, places=1),
)  # fmt: skip
def test_a_credit_lies_in_its_bounds_and_has_two_decimals(
    year: int, reach: D | None, mass: D | None, use: D | None, density: D | None, kind: str, power: D | None
) -> None:
    line = ModelLine("m", 1, kind, reach, mass, density, use, fuel_cell_kw=power)
    made = vehicle_credit(RULES.of(year), line)
    for value in (made.credit, made.low, made.high):
        if value is not None:
            assert 0 <= value <= D("7.5")
            assert value == half_up(value)
    assert (made.credit is None) <= bool(made.unconfirmed)
