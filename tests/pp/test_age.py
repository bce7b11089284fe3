"""Ages as people write them become years."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scvi_perturb.pp._age import age_in_years

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
def test_missing_stays_missing(value):
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
