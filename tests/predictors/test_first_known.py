"""The first predictor that knows a condition answers."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.predictors import Additive, ContextMean, FirstKnown, MatchingMean, NoChange
from tests.predictors._screen import make_screen


@pytest.fixture(scope="module")
def adata():
    return make_screen([("control", "T"), ("A", "T"), ("C", "T")])


def test_the_best_where_it_knows_the_next_where_it_does_not(adata):
    fit = {"keys": ScreenKeys(context="cell_type")}
    both = FirstKnown(Additive(), MatchingMean()).fit(adata, **fit)
    additive, matching = Additive().fit(adata, **fit), MatchingMean().fit(adata, **fit)
    np.testing.assert_allclose(both.predict(["A+C"]).X, additive.predict(["A+C"]).X)
    with pytest.raises(UnknownPerturbationError):
        additive.predict(["A+Z"])
    np.testing.assert_allclose(both.predict(["A+Z"]).X, matching.predict(["A+Z"]).X)
    table = both.predict(["A+C", "A+Z"])
    assert not np.allclose(*table.layers["lfc"])


def test_the_last_may_refuse(adata):
    chain = FirstKnown(ContextMean("contexts"), Additive()).fit(
        adata, keys=ScreenKeys(context=("cell_type",))
    )
    with pytest.raises(UnknownPerturbationError, match="'Z' was not trained on"):
        chain.predict(["Z"])


def test_profiles_must_agree():
    with pytest.raises(SchemaError, match="same profile"):
        FirstKnown(NoChange(), NoChange(profile="cell_mean"))
    with pytest.raises(SchemaError, match="same profile"):
        FirstKnown()
