"""The mean of components measured alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors import ContextMean, MatchingMean
from tests.predictors._effects import effects, lfc

A, C, D, PAIR, OTHER = np.random.default_rng(0).normal(size=(5, 4))


@pytest.fixture
def fitted():
    rows = [("A", A), ("C", C), ("A+D", PAIR), ("D", D), ("A", OTHER)]
    table = effects(rows, cell_type=["T", "T", "T", "B", "B"])
    return MatchingMean(profile="effects").fit(table, keys=ScreenKeys(context="cell_type"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("A", A),
        ("A+C", (A + C) / 2),
        ("never", (A + C + PAIR) / 3),
        ("A+never", (A + (A + C + PAIR) / 3) / 2),
        # D was measured alone in the other context only.
        ("A+D", (A + (A + C + PAIR) / 3) / 2),
    ],
)
def test_components_measured_alone_here_or_the_mean_of_all(fitted, asked, expected):
    table = pd.DataFrame({"perturbation": [asked], "cell_type": ["T"]})
    np.testing.assert_allclose(lfc(fitted, table)[0], expected, rtol=1e-5)


def test_an_unseen_single_gets_the_perturbation_mean_of_counts(screen):
    asked = pd.DataFrame({"perturbation": ["Z"], "cell_type": ["T"]})
    matching = MatchingMean().fit(screen, keys=ScreenKeys(context="cell_type")).predict(asked)
    mean = (
        ContextMean("perturbations")
        .fit(screen, keys=ScreenKeys(context="cell_type"))
        .predict(asked)
    )
    np.testing.assert_array_equal(matching.X, mean.X)


def test_a_context_without_perturbations_is_refused(fitted):
    table = pd.DataFrame({"perturbation": ["A"], "cell_type": ["new"]})
    with pytest.raises(SchemaError, match="No perturbation was measured in context"):
        fitted.predict(table)
