"""Doses, times and ages as people write them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb._core import SchemaError, shown
from scvi_perturb.data.condition import is_missing
from scvi_perturb.pp._quantities import age_in_years, to_one_unit

MOLAR = {"M": 1e6, "mM": 1e3, "uM": 1, "µM": 1, "μM": 1, "micromolar": 1, "nM": 1e-3, "pM": 1e-6}
TIME = {
    "h": 1,
    "hr": 1,
    "hours": 1,
    "min": 1 / 60,
    "d": 24,
    "days": 24,
    "weeks": 168,
    "s": 1 / 3600,
}


@given(st.lists(st.tuples(st.floats(1e-3, 1e3), st.sampled_from(sorted(MOLAR))), min_size=1))
def test_molar_doses_become_micromolar(doses):
    for quantities in (
        [(f"{number!r}{unit}", None) for number, unit in doses],
        [(f" {number!r} {unit} ", "") for number, unit in doses],
        [(number, unit) for number, unit in doses],
        [(repr(number), unit) for number, unit in doses],
    ):
        numbers, unit = to_one_unit(quantities, what="dose")
        assert unit == "uM"
        assert numbers == pytest.approx([number * MOLAR[name] for number, name in doses])


@pytest.mark.parametrize("unit", TIME)
def test_times_become_hours(unit):
    numbers, name = to_one_unit([(f"6 {unit}", None), (2, unit)], what="time")
    assert name == "h"
    assert numbers == pytest.approx([6 * TIME[unit], 2 * TIME[unit]])


def test_the_unit_may_come_first_for_times():
    assert to_one_unit([("day 7", None), ("h24", None)], what="time")[0] == [168.0, 24.0]


@pytest.mark.parametrize(
    "text",
    ["72 hour", "72 hours post infection", "72h post-transfection", "72 hpi", "72 hrs after"],
)
def test_times_since_something_are_times(text):
    assert to_one_unit([(text, None), (4, "days after plating")], what="time") == ([72, 96], "h")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1,000 nM", (1.0, "uM")), ("1,234,567.5", (1234567.5, "")), ("10 uM", (10.0, "uM"))],
)
def test_commas_separate_thousands(text, expected):
    (number,), unit = to_one_unit([(text, None)], what="dose")
    assert (number, unit) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize("text", ["0,5 uM", "1,0000 nM", "10, uM", "1234,567", "1.5.2"])
def test_other_commas_are_not_understood(text):
    with pytest.raises(SchemaError, match="is not a quantity"):
        to_one_unit([(text, None)], what="dose")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5 mcg/mL", (5000, "ng/mL")), ("100 units/mL", (100, "U/mL")), ("10 µM", (10, "uM"))],
)
def test_further_spellings_of_units(text, expected):
    assert to_one_unit([(text, None)], what="dose") == ([expected[0]], expected[1])


def test_the_unit_of_the_value_wins_over_that_of_the_column():
    assert to_one_unit([("5 nM", "uM"), (5, "uM")], what="dose")[0] == pytest.approx([0.005, 5])


@pytest.mark.parametrize("what", ["dose", "time"])
@pytest.mark.parametrize(
    "value",
    [
        *("10-20 uM", "1_000", "24-48 h", "24 h 30 min", "1:30", "5 +- 1 uM", "1/2", "0x10", "~5"),
        *(">10", "10 uM x 2", "1e400", True, 10**400, [1], (1, "uM"), "10 uM (n=2)", "1 h;2 h"),
        *("10**2", "10 u\u0301M", "\u0661", b"10-20"),
    ],
    ids=shown,
)
def test_what_is_no_single_number_is_refused(what, value):
    with pytest.raises(SchemaError, match=r"is not a quantity|cannot be read"):
        to_one_unit([(value, None)], what=what)


def test_the_unit_of_a_column_has_no_number():
    with pytest.raises(SchemaError, match="unit without numbers"):
        to_one_unit([(5, "10 nM")], what="dose")


@given(st.text(max_size=12), st.text(max_size=6), st.sampled_from(["dose", "time"]))
def test_any_text_is_read_or_refused(value, unit, what):
    try:
        (number,), _ = to_one_unit([(value, unit)], what=what)
    except SchemaError:
        return
    assert math.isnan(number) == is_missing(value)


def test_bytes_are_text():
    assert to_one_unit([(b"10 nM", None), ("5", b"nM")], what="dose")[0] == [0.01, 0.005]


def test_missing_stays_missing():
    numbers, unit = to_one_unit(
        [(None, "uM"), ("None", None), (float("nan"), None), ("-", None)], what="dose"
    )
    assert all(map(math.isnan, numbers))
    assert unit == ""
    assert [is_missing(value) for value in ("", "NA", 0, "0", "A")] == [True, True, *[False] * 3]


def test_numbers_without_unit():
    assert to_one_unit([(1, None), ("2.5", "nan")], what="dose") == ([1.0, 2.5], "")


def test_kinds_of_doses_keep_their_units():
    numbers, unit = to_one_unit([("10 nM", None), ("1 ug/ml", None)], what="dose")
    assert numbers == pytest.approx([0.01, 1000])
    assert unit == "ng/mL, uM"


def test_one_unknown_unit_is_kept():
    assert to_one_unit([("3 MOI", None), (4, "MOI")], what="dose") == ([3.0, 4.0], "MOI")


@pytest.mark.parametrize(
    ("quantities", "message"),
    [
        ([("1 MOI", None), ("1 nM", None)], "'MOI' is not known"),
        ([("1", None), ("1 nM", None)], "some have no unit"),
        ([("high", None)], "'high' is not a quantity"),
        ([("1 2", None), ("3", None)], "'1 2' is not a quantity"),
    ],
)
def test_messages(quantities, message):
    with pytest.raises(SchemaError, match=message):
        to_one_unit(quantities, what="dose")


UNITS = {
    **dict.fromkeys(("", " years", "y", " yr", " yo", " y.o.", "-year-old", " years of age"), 1.0),
    **dict.fromkeys((" months", "mo", " m", " months old", " mos."), 12.0),
    **dict.fromkeys((" weeks", "w", " wks", "-week-old"), 365.25 / 7),
    **dict.fromkeys((" days", "d", " Day", "-day-old"), 365.25),
}


@given(st.floats(0.0, 129.0), st.sampled_from(sorted(UNITS)))
def test_text_and_back(years, unit):
    assert age_in_years(f"{years * UNITS[unit]!r}{unit}") == pytest.approx(years, abs=1e-12)


@given(st.integers(0, 120), st.integers(0, 10), st.sampled_from(["-", " - ", "\u2013", " to "]))
def test_a_range_is_its_midpoint(low, width, dash):
    assert age_in_years(f"{low}{dash}{low + width} years") == low + width / 2


@given(st.floats(0.0, 120.0), st.sampled_from(["years", "Months", "weeks", "d"]))
def test_the_unit_may_stand_beside(number, unit):
    in_text, beside = age_in_years(f"{number!r} {unit}"), age_in_years(number, unit)
    assert beside == in_text
    assert beside == age_in_years(repr(number), unit)


@pytest.mark.parametrize(
    ("value", "unit", "years"),
    [
        (45, None, 45.0),
        (45.5, None, 45.5),
        ("45", "nan", 45.0),
        ("8 weeks", "years", 56 / 365.25),  # the text's own unit wins
        ("6-8", "weeks", 49 / 365.25),
        ("40-49", None, 44.5),
        ("0", None, 0.0),
        ("18 Months", None, 1.5),
    ],
)
def test_examples(value, unit, years):
    assert age_in_years(value, unit) == pytest.approx(years)


@pytest.mark.parametrize("value", [None, float("nan"), "", "NA", "unknown", "Not Available"])
def test_a_missing_age_stays_missing(value):
    assert math.isnan(age_in_years(value))


@pytest.mark.parametrize(
    "value",
    [
        *(
            "fetal",
            "adult",
            "P7",
            "P0D",
            "E12.5",
            "90+",
            ">89",
            "80 or over",
            "Oct-19",
            "45 years 2",
        ),
        *("49-40", "-1", -1, "300", 1e6, float("inf"), "2020-2021", "45 moons", True),
    ],
)
def test_nothing_is_guessed(value):
    assert age_in_years(value) is None


def test_an_unknown_unit_beside_is_not_understood():
    assert age_in_years(8, "passages") is None
