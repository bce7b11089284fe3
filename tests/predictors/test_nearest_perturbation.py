"""The most similar training perturbation stands in."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import NearestPerturbation
from tests.predictors._effects import effects, lfc

#: x is nearest to A; y is as near to A as to B; z shares no modality with any.
FEATURES = PerturbationFeatures(
    {
        "sets": pd.DataFrame(
            [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 0], [1, 0, 0, 1, 0]],
            index=["A", "B", "x", "y", "tied"],
        ),
        "text": pd.DataFrame([[1.0, -1.0]], index=["z"]),
    }
)
A, B, PAIR = np.random.default_rng(0).normal(size=(3, 4))


@pytest.fixture
def fitted():
    table = effects([("A", A), ("B", B), ("A+B", PAIR)])
    return NearestPerturbation(FEATURES, profile="effects").fit(table)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("A", A),
        ("x", A),
        ("y", B),
        ("A+B", A + B),
        ("B+x", A + B),
        ("x+y", A + B),
    ],
)
def test_exact_where_measured_else_the_nearest_and_summed(fitted, asked, expected):
    np.testing.assert_allclose(lfc(fitted, [asked])[0], expected, rtol=1e-5)


def test_ties_are_averaged():
    store = PerturbationFeatures({"x": pd.DataFrame([[1, 0], [0, 1], [1, 1]], index=list("ABu"))})
    predictor = NearestPerturbation(store, profile="effects").fit(effects([("A", A), ("B", B)]))
    np.testing.assert_allclose(lfc(predictor, ["u"])[0], (A + B) / 2, rtol=1e-5)


def test_the_same_context_where_measured_else_the_mean_over_contexts():
    rows = [("A", A), ("A", B), ("B", PAIR)]
    table = effects(rows, cell_type=["T", "N", "T"])
    predictor = NearestPerturbation(FEATURES, profile="effects").fit(
        table, keys=ScreenKeys(context="cell_type")
    )
    asked = pd.DataFrame({"perturbation": ["x"] * 2, "cell_type": ["N", "new"]})
    np.testing.assert_allclose(lfc(predictor, asked), [B, (A + B) / 2], rtol=1e-5)


def test_other_doses_of_the_same_perturbation_are_nearest():
    table = effects([("A", A), ("A", B), ("B", PAIR)], dose=[1.0, 100.0, 1.0])
    keys = ScreenKeys("perturbation", dose="dose")
    predictor = NearestPerturbation(FEATURES, profile="effects").fit(table, keys=keys)
    asked = pd.DataFrame({"perturbation": ["A", "A", "A", "x"], "dose": [2, 50, 10, 90]})
    np.testing.assert_allclose(lfc(predictor, asked), [A, B, (A + B) / 2, B], rtol=1e-5)


def test_without_a_shared_modality_nothing_is_known(fitted):
    for name in ("z", "not there"):
        with pytest.raises(UnknownPerturbationError, match=f"'{name}' was not trained on"):
            fitted.predict([name])


def test_features_are_needed():
    with pytest.raises(SchemaError, match="NearestPerturbation compares"):
        NearestPerturbation(profile="effects").fit(effects([("A", A)]))
