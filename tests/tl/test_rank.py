"""Conditions by the size of their effects."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest

import scvi_perturb as svp


@pytest.fixture
def predicted():
    lfc = np.array([[0.3, -0.4, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 0.1]])
    reach = np.array([[0.1, 0.1, 0.1], [4.0, 0.1, 0.1], [0.2, 0.2, 0.2]])
    obs = pd.DataFrame({"perturbation": ["A", "B", "C"], "novelty": [0.1, 0.9, 0.2]})
    obs.index = obs.index.astype(str)
    layers = {"lfc": lfc, "lower": lfc - reach, "upper": lfc + reach}
    return anndata.AnnData(lfc, obs, pd.DataFrame(index=["x", "y", "z"]), layers=layers)


def test_order_by_norm(predicted):
    table = svp.tl.rank_effects(predicted)
    assert table["perturbation"].tolist() == ["B", "A", "C"]
    assert table["rank"].tolist() == [1, 2, 3]
    np.testing.assert_allclose(table["norm"], [3.0, 0.5, 0.1])
    assert table["top_gene"].tolist() == ["x", "y", "z"]
    np.testing.assert_allclose(table["top_lfc"], [3.0, -0.4, 0.1])
    assert table["novelty"].tolist() == [0.9, 0.1, 0.2]


def test_intervals_are_counted_and_bound_the_norm(predicted):
    table = svp.tl.rank_effects(predicted, by="norm_lower").set_index("perturbation")
    assert table.index.tolist() == ["A", "B", "C"]  # the interval of B holds 0
    assert table.loc["A", ["n_genes", "n_up", "n_down"]].tolist() == [2, 1, 1]
    assert table.loc["B", "n_genes"] == 0
    np.testing.assert_allclose(table.loc["A", "norm_lower"], np.hypot(0.2, 0.3))
    np.testing.assert_allclose(table.loc["B", "norm_upper"], np.sqrt(7**2 + 2 * 0.1**2))
    within = svp.tl.rank_effects(predicted, threshold=0.25).set_index("perturbation")
    assert within.loc["A", ["n_up", "n_down"]].tolist() == [0, 1]


def test_effects_without_intervals(predicted):
    del predicted.layers["lower"]
    table = svp.tl.rank_effects(predicted)
    assert table["perturbation"].tolist() == ["B", "A", "C"]
    assert table[["n_genes", "norm_lower", "norm_upper"]].isna().all(axis=None)
    with pytest.raises(svp.SchemaError, match="needs intervals"):
        svp.tl.rank_effects(predicted, by="n_genes")
    del predicted.layers["lfc"]
    with pytest.raises(svp.SchemaError, match="'lfc' is missing"):
        svp.tl.rank_effects(predicted)
