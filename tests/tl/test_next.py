"""Next experiments: the covariance that they are chosen by, costs, hits."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import norm

import scvi_perturb as svp

SIGNATURE = {"gene_00": 1.0, "gene_01": 1.0, "gene_02": -2.0}


@pytest.fixture(scope="module")
def screen():
    config = svp.data.SimulatorConfig(
        n_perturbations=8, n_combinations=2, n_contexts=1, n_batches=1
    )
    return svp.data.simulate_screen(n_cells=1000, n_genes=50, seed=0, config=config)


@pytest.fixture(scope="module")
def model(screen):
    return svp.predictors.ConditionGP().fit(screen)


@pytest.fixture(scope="module")
def pairs(screen):
    names = [f"pert_0{i}" for i in range(1, 9)]
    seen = set(screen.obs["perturbation"].astype(str))
    return [pair for a, b in combinations(names, 2) if (pair := f"{a}+{b}") not in seen]


def test_gains_are_those_of_measuring_all_that_were_chosen(model, pairs):
    table = svp.tl.next_experiments(model, pairs, 4)
    assert table["rank"].tolist() == [1, 2, 3, 4]
    before = model.covariance(pairs).shared
    rows = [pairs.index(name) for name in table["perturbation"]]
    noise = model.hyperparameters_["ratio"] * np.eye(4)
    cross = before[:, rows]
    after = before - cross @ np.linalg.solve(before[np.ix_(rows, rows)] + noise, cross.T)
    remaining = np.trace(after) / np.trace(before)
    assert table["remaining"].iloc[-1] == pytest.approx(remaining)
    assert table["gain"].sum() == pytest.approx(1 - remaining)
    single = (before**2).sum(axis=0) / (np.diagonal(before) + model.hyperparameters_["ratio"])
    assert rows[0] == single.argmax()


def test_a_batch_is_diverse(model, pairs):
    """Together they teach more than those that teach most one by one."""
    table = svp.tl.next_experiments(model, pairs, 3)
    before = model.covariance(pairs).shared
    single = (before**2).sum(axis=0) / (np.diagonal(before) + model.hyperparameters_["ratio"])
    alone = np.argsort(-single)[:3]

    def left(rows):
        own = before[np.ix_(rows, rows)] + model.hyperparameters_["ratio"] * np.eye(3)
        return np.trace(before - before[:, rows] @ np.linalg.solve(own, before[rows]))

    assert left([pairs.index(name) for name in table["perturbation"]]) <= left(list(alone))


def test_more_cells_teach_more(model, pairs):
    few, many = (svp.tl.next_experiments(model, pairs, 2, n_cells=n) for n in (5, 500))
    assert few["gain"].iloc[0] < many["gain"].iloc[0]


def test_costs_and_budgets(model, pairs):
    free = svp.tl.next_experiments(model, pairs, 1)["perturbation"].iloc[0]
    cost = np.where(np.array(pairs) == free, 1000.0, 2.0)
    candidates = pd.DataFrame({"perturbation": pairs, "cost": cost})
    table = svp.tl.next_experiments(model, candidates, 5, budget=7.0)
    assert free not in set(table["perturbation"])
    assert len(table) == 3
    np.testing.assert_allclose(table["total_cost"], [2, 4, 6])
    with pytest.raises(svp.SchemaError, match="the cheapest costs 2"):
        svp.tl.next_experiments(model, candidates, 1, budget=1.0)
    with pytest.raises(svp.SchemaError, match="positive numbers"):
        svp.tl.next_experiments(model, candidates.assign(cost=0.0), 1)
    with pytest.raises(svp.SchemaError, match="positive numbers"):
        svp.tl.next_experiments(model, candidates.assign(cost="dear"), 1)


def test_hits_are_the_most_probable(model, pairs):
    weights = np.zeros(50)
    weights[:3] = np.array([1, 1, -2]) / 4
    score = model.predict(pairs).layers["lfc"] @ weights
    options = {"by": "hits", "signature": SIGNATURE, "threshold": float(score.max())}
    table = svp.tl.next_experiments(model, pairs, len(pairs), **options)
    place = [pairs.index(name) for name in table["perturbation"]]
    np.testing.assert_allclose(table["score"], score[place])
    z = (table["score"] - score.max()) / table["score_std"]
    np.testing.assert_allclose(table["p_hit"], norm.cdf(z), rtol=1e-6)
    assert table["p_hit"].iloc[0] == table["p_hit"].max()


def test_both_weighs_gain_and_hits(model, pairs):
    options = {"signature": SIGNATURE, "threshold": 0.0}
    whole = {
        by: svp.tl.next_experiments(model, pairs, 1, by=by, **options).iloc[0]
        for by in ("information", "hits", "both")
    }
    most_gain, most_hits = whole["information"]["gain"], whole["hits"]["p_hit"]
    worth = {by: row["gain"] / most_gain + row["p_hit"] / most_hits for by, row in whole.items()}
    assert worth["both"] == max(worth.values())


def test_a_stack_knows_the_covariance_too(screen, pairs):
    stack = svp.predictors.StackedMean(
        members={"condition_gp": svp.predictors.ConditionGP()}, n_folds=2
    ).fit(screen)
    assert len(svp.tl.next_experiments(stack, pairs, 2)) == 2


def test_what_is_missing_is_named(model, screen, pairs):
    with pytest.raises(svp.SchemaError, match="by='hits' needs a signature"):
        svp.tl.next_experiments(model, pairs, 1, by="hits")
    with pytest.raises(svp.SchemaError, match="No gene of the signature"):
        svp.tl.next_experiments(model, pairs, 1, by="hits", signature={"IL6": 1.0})
    partly = {screen.var_names[0]: 1.0, "IL6": 1.0}
    with pytest.warns(UserWarning, match="1 of 2 genes of the signature.*IL6"):
        svp.tl.next_experiments(model, pairs, 1, by="hits", signature=partly)
    with pytest.raises(svp.SchemaError, match="1 candidates come more than once"):
        svp.tl.next_experiments(model, ["pert_01+pert_02", "pert_02+pert_01"], 2)
    with pytest.raises(ValueError, match="above the number of candidates"):
        svp.tl.next_experiments(model, pairs, 1000)
    other = svp.predictors.StackedMean(members={"none": svp.predictors.NoChange()}).fit(screen)
    with pytest.raises(svp.SchemaError, match="holds no Gaussian process"):
        svp.tl.next_experiments(other, pairs, 1)
