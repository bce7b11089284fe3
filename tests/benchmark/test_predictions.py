"""Answers that do not fit the question are refused, each in its own words."""

from __future__ import annotations

from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import SchemaError
from scvi_perturb.benchmark import Trial, evaluate
from scvi_perturb.metrics import log_normalize
from tests.benchmark._world import TASK, make_trial, screen, totals, truth_cells


@pytest.fixture(scope="module")
def trial():
    return make_trial()


@pytest.fixture(scope="module")
def good(trial):
    return truth_cells(trial)


def named(cells, name):
    return (cells.obs["perturbation"] == name).to_numpy()


def test_missing_conditions(trial, good):
    name = trial.requests["perturbation"][0]
    with pytest.raises(SchemaError, match=rf"lacks 1 of 6 conditions: \['{name} \| type_01'\]"):
        evaluate(trial, good[~named(good, name)])


def test_extra_conditions(trial, good):
    extra = good[:5].copy()
    extra.obs["perturbation"] = "pert_77"
    with pytest.raises(SchemaError, match=r"1 conditions that were not asked for.*pert_77"):
        evaluate(trial, anndata.concat([good, extra], index_unique="-"))


def test_other_genes(trial, good):
    other = good.copy()
    other.var_names = [f"X{name}" for name in good.var_names]
    with pytest.raises(SchemaError, match="150 of the screen's are missing and 150 are not"):
        evaluate(trial, other)
    with pytest.raises(SchemaError, match="1 of the screen's are missing and 0 are not"):
        evaluate(trial, good[:, 1:])


def test_logs_where_counts_are_needed(trial, good):
    logged = good.copy()
    logged.X = log_normalize(good.X)
    with pytest.raises(SchemaError, match="raw counts"):
        evaluate(trial, logged)
    logged.uns["scvi_perturb"] = {"units": "log1p(counts per 10,000)"}
    found = totals(evaluate(trial, logged))
    exact = totals(evaluate(trial, good))
    assert found["energy"] == pytest.approx(exact["energy"], abs=1e-6)
    assert found["nmse_vs_no_change"] == pytest.approx(exact["nmse_vs_no_change"], abs=0.02)
    logged.X.data[:3] = -1
    with pytest.raises(SchemaError, match="negative or not finite"):
        evaluate(trial, logged)


def test_one_predicted_cell(trial, good):
    name = trial.requests["perturbation"][0]
    one = np.flatnonzero(named(good, name))[:1]
    rest = np.flatnonzero(~named(good, name))
    with pytest.raises(SchemaError, match=r"has 1 cells of .* 400 were measured"):
        evaluate(trial, good[np.concatenate([one, rest])])


def test_columns_that_are_missing(trial, good):
    bare = good.copy()
    del bare.obs["cell_type"]
    with pytest.raises(SchemaError, match="no column 'cell_type'"):
        evaluate(trial, bare)


def test_means_alone(trial, good):
    rows = [good[named(good, name)].X.sum(0) for name in trial.requests["perturbation"]]
    shares = np.log1p(1e4 * np.vstack(rows) / np.vstack(rows).sum(1))
    means = anndata.AnnData(
        np.asarray(shares), obs=trial.requests.set_axis([f"row{i}" for i in range(6)])
    )
    means.var_names = good.var_names
    found = totals(evaluate(trial, means, cells=False))
    exact = totals(evaluate(trial, good))
    assert found["pearson_delta"] == pytest.approx(exact["pearson_delta"], abs=1e-6)
    assert "energy" not in found
    twice = anndata.concat([means, means[:1]], index_unique="-")
    with pytest.raises(SchemaError, match="predicted 2 times"):
        evaluate(trial, twice, cells=False)
    means.X[0, 0] = np.nan
    with pytest.raises(SchemaError, match="not finite"):
        evaluate(trial, means, cells=False)


def _with_one_lonely_condition():
    adata = screen()
    name = "pert_03"
    rows = np.flatnonzero((adata.obs["perturbation"] == name).to_numpy())
    return adata[np.setdiff1d(np.arange(adata.n_obs), rows[1:])].copy()


def test_one_measured_cell_has_no_scores_but_is_told_of():
    trial = make_trial(replace(TASK, load=_with_one_lonely_condition))
    lonely = [case for case in trial.conditions if case.truth is None]
    assert [case.about["perturbation"] for case in lonely] == ["pert_03"]
    assert lonely[0].about["n_cells"] == 1
    assert np.isnan(lonely[0].about["effect"])
    frame = evaluate(trial, truth_cells(trial))
    assert frame["condition"].nunique() == 5


def _without_controls_in_one_context():
    adata = screen()
    adata.obs["cell_type"] = np.where(np.arange(adata.n_obs) % 2, "one", "two")
    drop = (adata.obs["perturbation"] == "control") & (adata.obs["cell_type"] == "two")
    return adata[~drop.to_numpy()].copy()


@pytest.mark.filterwarnings("ignore:Contexts:UserWarning")
def test_context_without_controls():
    with pytest.raises(SchemaError, match="has 0 control cells that may be seen"):
        make_trial(replace(TASK, load=_without_controls_in_one_context))


def test_a_single_context_cannot_be_held_out():
    with pytest.raises(SchemaError, match="perturbed cell to train on"):
        Trial.make(replace(TASK, kind="unseen_context"), seed=0, fold=0)


def test_a_table_of_scores_keeps_its_conditions(trial, good):
    frame = evaluate(trial, good)
    assert isinstance(frame, pd.DataFrame)
    assert set(frame["condition"]) == {case.name for case in trial.conditions}
    assert list(frame.columns) == ["metric", "condition", "numerator", "denominator", "value"]
