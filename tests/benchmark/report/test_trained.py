"""A trained model beside what was held out: units, names, and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest

import scvi_perturb as svp
from scvi_perturb.benchmark import study_report
from scvi_perturb.benchmark.report._trained import TrainedPredictor, answers, compare
from tests.cli.conftest import simulate

if TYPE_CHECKING:
    import anndata


@pytest.fixture(scope="module")
def adata() -> anndata.AnnData:
    """A screen that holds a part of the genes that were counted."""
    made = simulate(200)
    factor = np.where(made.obs["perturbation"] == "control", 20.0, 25.0)
    made.obs["total"] = factor * np.asarray(made.X.sum(axis=1)).ravel()
    return made


@pytest.fixture(scope="module")
def split(adata):
    return svp.data.split(adata, "unseen_combination", seed=0)


@pytest.fixture(scope="module")
def model(adata, split):
    svp.PerturbDiffusion.setup_anndata(adata, library_key="total")
    made = svp.PerturbDiffusion(adata)
    made.train(split=split, max_epochs=1, n_steps=5, enable_progress_bar=False)
    return made


def test_profiles_are_those_of_the_genes_in_the_file(model):
    """The same shares, as counts per ten thousand of the genes that are there."""
    found = TrainedPredictor(model, 0).predict(["pert_01"])
    raw = model.predict(["pert_01"], seed=0)
    share = np.expm1(np.asarray(raw.X, np.float64))
    assert share.sum() < 1000
    expected = np.log1p(1e4 * share / share.sum())
    np.testing.assert_allclose(found.X, expected, rtol=1e-5)
    control = np.expm1(np.asarray(raw.X - raw.layers["lfc"], np.float64))
    own = np.log1p(1e4 * control / control.sum())
    np.testing.assert_allclose(found.layers["lfc"], expected - own, atol=1e-5)
    assert (found.layers["lower"] <= found.layers["lfc"]).all()
    assert (found.layers["lfc"] <= found.layers["upper"]).all()
    # A standard error is that of a small change.
    step = 1e-4 * np.asarray(raw.layers["std"], np.float64)
    moved = np.log1p(1e4 * np.expm1(raw.X + step) / share.sum()) - expected
    np.testing.assert_allclose(found.layers["std"], 1e4 * moved, rtol=1e-2)


def test_measured_changes_are_in_the_units_of_predict(model, adata, split):
    """Of summed counts by library sizes, also where the share of the genes differs."""
    found = compare(TrainedPredictor(model, 0), adata, split)
    condition = found.trial.conditions[0]
    treated = split.test[condition.rows]
    is_control = (adata.obs["perturbation"] == "control").to_numpy()
    controls = np.setdiff1d(np.flatnonzero(is_control), split.test)
    profiles = [
        np.log1p(1e4 * np.asarray(adata.X[rows].sum(axis=0)).ravel() / total)
        for rows in (treated, controls)
        for total in [adata.obs["total"].iloc[rows].sum()]
    ]
    control = condition.truth.control.mean
    change = found.change(0, control, condition.truth.observed.mean - control, real=True)
    np.testing.assert_allclose(change, profiles[0] - profiles[1], atol=1e-6)
    nothing = found.change(0, control, np.zeros_like(control), real=False)
    np.testing.assert_allclose(nothing, 0, atol=1e-12)


def test_names_in_any_order_are_the_same_condition(model):
    (one,) = answers(TrainedPredictor(model, 0), ["pert_02+pert_01"], None)
    assert one.name == "pert_01+pert_02"
    assert one.held_out is None


def test_what_was_not_held_out_by_this_split_is_refused(model, adata, split, tmp_path):
    other = svp.data.split(adata, "cells", seed=0)
    with pytest.raises(svp.SchemaError, match="not trained with this split"):
        study_report(model, adata, path=tmp_path / "a.html", split=other)
    # Of the same kind and data, but with other cells: these were trained on.
    other = svp.data.split(adata, split.kind, seed=split.seed + 1)
    with pytest.raises(svp.SchemaError, match="not trained with this split"):
        study_report(model, adata, path=tmp_path / "a.html", split=other)
    with pytest.raises(svp.SchemaError, match=f"3 genes, the model was trained on {adata.n_vars}"):
        study_report(model, adata[:, :3], path=tmp_path / "a.html", conditions=["pert_01"])
    with pytest.raises(svp.SchemaError, match="name conditions"):
        study_report(model, adata, path=tmp_path / "a.html")
    with pytest.raises(svp.SchemaError, match="conditions is empty"):
        study_report(model, adata, path=tmp_path / "a.html", split=split, conditions=[])
    with pytest.raises(svp.UnknownPerturbationError):
        study_report(model, adata, path=tmp_path / "a.html", conditions=["pert_77"])
    assert not (tmp_path / "a.html").exists()
    assert pd.Series(split.labels()).eq("test").any()
