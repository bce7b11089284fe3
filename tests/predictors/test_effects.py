"""Data whose rows are changes from control already."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_perturb._core import UNS_KEY, SchemaError
from scvi_perturb.data import ScreenKeys, split
from scvi_perturb.predictors import (
    PREDICTORS,
    Additive,
    ContextMean,
    MeanPredictor,
    NegativeBinomialMean,
    NoChange,
    ShiftedControl,
)
from scvi_perturb.testing import moved_split
from tests.predictors._effects import build, effects, lfc
from tests.predictors._screen import make_screen

A_IN_T = pd.DataFrame({"perturbation": ["A"], "cell_type": ["T"]})
MEANS = [cls for cls in PREDICTORS.values() if issubclass(cls, MeanPredictor)]


@pytest.fixture
def table():
    """Changes of singles and a pair, A in two contexts."""
    rng = np.random.default_rng(0)
    names = ["A", "A", "C", "D", "E", "A+C", "A"]
    types = ["T", "T", "T", "B", "T", "T", "B"]
    return effects([(name, rng.normal(size=5)) for name in names], cell_type=types)


def test_the_change_is_the_mean_of_the_rows(table):
    made = Additive(profile="effects").fit(table).predict(["A", "A+C", "control"])
    a, c = table.X[[0, 1, 6]].mean(0), table.X[2]
    np.testing.assert_allclose(made.X, [a, a + c, np.zeros(5)], rtol=1e-6)
    np.testing.assert_array_equal(made.X, made.layers["lfc"])
    assert made.uns[UNS_KEY]["units"] == "effects as given"
    assert made.uns[UNS_KEY]["profile"] == "effects"


@pytest.mark.parametrize("cls", MEANS)
def test_all_means_take_changes_without_controls(table, cls):
    made = (
        build(cls, profile="effects")
        .fit(table, keys=ScreenKeys(context="cell_type"))
        .predict(A_IN_T)
    )
    assert np.isfinite(made.X).all()
    np.testing.assert_array_equal(made.X, made.layers["lfc"])


@pytest.mark.parametrize("cls", MEANS)
def test_rows_of_controls_change_nothing(table, cls):
    controls = effects([("control", np.full(5, 9.0))], cell_type=["T"])
    both = anndata.concat([table, controls], index_unique="-")
    first = build(cls, profile="effects").fit(table, keys=ScreenKeys(context="cell_type"))
    second = build(cls, profile="effects").fit(both, keys=ScreenKeys(context="cell_type"))
    np.testing.assert_array_equal(lfc(first, A_IN_T), lfc(second, A_IN_T))


def test_contexts_are_kept_apart(table):
    predictor = ContextMean("perturbations", profile="effects").fit(
        table, keys=ScreenKeys(context="cell_type")
    )
    asked = pd.DataFrame({"perturbation": ["Z"], "cell_type": ["B"]})
    np.testing.assert_allclose(lfc(predictor, asked)[0], table.X[[3, 6]].mean(0), rtol=1e-6)


@pytest.mark.parametrize("kind", ["layer", "sparse", "csc", "backed"])
def test_where_the_changes_are_makes_no_difference(table, kind, tmp_path):
    expected = lfc(Additive(profile="effects").fit(table), ["A+C"])
    layer = None
    if kind == "layer":
        table.layers["z"], table.X = table.X.copy(), np.full(table.shape, np.nan)
        layer = "z"
    elif kind == "backed":
        table.write_h5ad(tmp_path / "table.h5ad")
        table = anndata.read_h5ad(tmp_path / "table.h5ad", backed="r")
    else:
        table.X = sparse.csr_matrix(table.X) if kind == "sparse" else sparse.csc_matrix(table.X)
    predictor = Additive(profile="effects").fit(table, keys=ScreenKeys(layer=layer))
    np.testing.assert_allclose(lfc(predictor, ["A+C"]), expected, rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix])
def test_what_is_not_finite_is_refused(table, bad, form):
    table.X[2, 1] = table.X[4, 0] = bad
    table.X = form(table.X)
    with pytest.raises(SchemaError, match=r"adata.X has NaN or infinite values in 2 rows.*'row2'"):
        NoChange(profile="effects").fit(table)


def test_held_out_rows_may_be_anything(table):
    keys = ScreenKeys("perturbation")
    made = split(table, "unseen_perturbation", fraction=0.3, keys=keys)
    first = ContextMean("perturbations", profile="effects").fit(table, made)
    table.X[made.test] = np.nan
    made = moved_split(made, table)
    second = ContextMean("perturbations", profile="effects").fit(table, made)
    np.testing.assert_array_equal(lfc(first, ["Z"]), lfc(second, ["Z"]))


def test_a_reference_means_nothing_here(table):
    predictor = NoChange(profile="effects").fit(table)
    with pytest.raises(SchemaError, match=r"Leave .reference. out"):
        predictor.predict(["A"], reference=make_screen([("control", "T")]))


def test_cells_cannot_be_made_from_changes():
    with pytest.raises(SchemaError, match="ShiftedControl predicts cells"):
        ShiftedControl(NoChange(profile="effects"))
    with pytest.raises(SchemaError, match="NegativeBinomialMean predicts cells"):
        NegativeBinomialMean(NoChange(profile="effects"))


def test_counts_still_have_to_be_counts_and_have_controls(table):
    with pytest.raises(SchemaError, match=r"No control cell"):
        NoChange().fit(table)
    table.obs.loc["row0", "perturbation"] = "control"
    with pytest.raises(SchemaError, match="raw counts"):
        NoChange().fit(table)
