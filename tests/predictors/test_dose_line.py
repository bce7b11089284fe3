"""Lines and curves through doses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import UnknownPerturbationError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors import DoseLine
from tests.predictors._effects import effects, lfc

KEYS = ScreenKeys("perturbation", dose="dose")
RNG = np.random.default_rng(0)
SLOPE, START, TOP = RNG.normal(size=(3, 5))


def line(dose):
    return START + SLOPE * np.log(dose)


def hill(dose, half=3.0):
    return TOP * dose / (dose + half)


def fitted(form, rows, doses, **columns):
    table = effects(rows, dose=doses, **columns)
    return DoseLine(form, profile="effects").fit(table, keys=replace(KEYS, context=[*columns]))


def ask(names, doses, **columns):
    return pd.DataFrame({"perturbation": names, "dose": doses} | columns)


def test_a_line_in_the_logarithm_inside_and_beyond():
    doses = [1.0, 10.0, 100.0]
    predictor = fitted("log_linear", [("A", line(d)) for d in doses], doses)
    asked = [0.1, 3.0, 10.0, 1000.0]
    made = lfc(predictor, ask(["A"] * 4, asked))
    np.testing.assert_allclose(made, [line(d) for d in asked], rtol=1e-4, atol=1e-5)


def test_the_line_is_of_least_squares():
    doses = [1.0, 2.0, 5.0, 9.0]
    noisy = RNG.normal(size=(4, 5))
    predictor = fitted("log_linear", [("A", row) for row in noisy], doses)
    slope, start = np.polyfit(np.log(doses), noisy, 1)
    made = lfc(predictor, ask(["A"], [4.0]))[0]
    np.testing.assert_allclose(made, start + slope * np.log(4.0), rtol=1e-4, atol=1e-5)


def test_hill_curves_are_recovered():
    doses = [0.3, 1.0, 3.0, 10.0, 30.0]
    predictor = fitted("hill", [("A", hill(d)) for d in doses], doses)
    assert predictor.half_doses[("A", "", None)] == pytest.approx(3.0, rel=0.15)
    asked = [0.1, 2.0, 100.0]
    made = lfc(predictor, ask(["A"] * 3, asked))
    np.testing.assert_allclose(made, [hill(d) for d in asked], rtol=0.1, atol=0.01)


def test_a_hill_curve_saturates_and_starts_at_zero():
    predictor = fitted("hill", [("A", hill(d)) for d in (1.0, 10.0)], [1.0, 10.0])
    made = lfc(predictor, ask(["A"] * 3, [1e-6, 1e6, 1e9]))
    np.testing.assert_allclose(made[0], 0, atol=1e-4)
    np.testing.assert_allclose(made[1], made[2], rtol=1e-4)


@pytest.mark.parametrize("form", ["log_linear", "hill"])
def test_one_dose_is_a_constant(form):
    predictor = fitted(form, [("A", START)], [5.0])
    np.testing.assert_allclose(lfc(predictor, ask(["A"] * 2, [1.0, 50.0])), [START] * 2, rtol=1e-6)


@pytest.mark.parametrize("form", ["log_linear", "hill"])
def test_combinations_are_sums(form):
    rows = [("A", line(1)), ("A", line(9)), ("B", hill(1)), ("B", hill(9))]
    predictor = fitted(form, rows, [1.0, 9.0, 1.0, 9.0])
    made = lfc(predictor, ask(["A", "B", "A+B"], ["2", "4", "2+4"]))
    np.testing.assert_allclose(made[2], made[0] + made[1], rtol=1e-5, atol=1e-6)


def test_the_context_where_measured_else_the_mean_over_contexts():
    rows = [("A", line(1)), ("A", line(9)), ("A", -line(1)), ("A", START)]
    types = ["T", "T", "N", "N"]
    predictor = fitted("log_linear", rows, [1.0, 9.0, 1.0, 9.0], cell_type=types)
    asked = ask(["A"] * 3, [3.0] * 3, cell_type=["T", "N", "new"])
    made = lfc(predictor, asked)
    np.testing.assert_allclose(made[0], line(3), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(made[2], made[:2].mean(0), rtol=1e-4, atol=1e-6)


def test_a_unit_of_dose_makes_no_difference():
    rows = [("A", hill(d)) for d in (1.0, 4.0, 9.0)]
    for form in ("log_linear", "hill"):
        first = fitted(form, rows, [1.0, 4.0, 9.0])
        second = fitted(form, rows, [1000.0, 4000.0, 9000.0])
        np.testing.assert_allclose(
            lfc(first, ask(["A"], [2.0])), lfc(second, ask(["A"], [2000.0])), rtol=1e-4, atol=1e-6
        )


def test_what_was_never_measured_alone_is_refused():
    predictor = fitted("hill", [("A", START), ("A+B", TOP)], ["1", "1+1"])
    with pytest.raises(UnknownPerturbationError, match=r"'B' was not trained on"):
        predictor.predict(ask(["B"], [1.0]))
    with pytest.raises(ValueError, match="form='cubic' is not known"):
        DoseLine("cubic")
