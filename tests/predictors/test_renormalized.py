"""Predicted profiles of summed counts: shares that sum to one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from scvi_perturb.data import ScreenKeys, simulate_screen
from scvi_perturb.predictors import ConditionGP, FirstKnown, NoChange, StackedMean
from scvi_perturb.predictors.profiles import TrainingProfiles, renormalized


def total(made):
    return np.expm1(np.asarray(made.X, np.float64)).sum(axis=1)


def test_closing_scales_all_genes_alike_and_keeps_what_is_closed():
    random = np.random.default_rng(0)
    shares = random.gamma(1.0, size=(4, 50))
    control = np.log1p(1e4 * shares / shares.sum(1, keepdims=True))
    change = random.normal(0.2, 0.3, control.shape)
    made = renormalized(change, control)
    counts = np.expm1(control + made)
    np.testing.assert_allclose(counts.sum(1), 1e4)
    wanted = np.maximum(np.expm1(control + change), 0)
    ratio = counts[wanted > 0] / wanted[wanted > 0]
    factor = np.broadcast_to(1e4 / wanted.sum(1, keepdims=True), wanted.shape)[wanted > 0]
    np.testing.assert_allclose(ratio, factor)
    np.testing.assert_allclose(renormalized(made, control), made, atol=1e-12)
    assert not renormalized(0 * control, control).any()


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(n_cells=1500, n_genes=60, seed=0)


@pytest.fixture(scope="module")
def new_pairs(screen):
    seen = set(screen.obs["perturbation"])
    names = [name for name in sorted(seen) if "+" not in name and name != "control"]
    return [f"{a}+{b}" for a in names for b in names if a < b and f"{a}+{b}" not in seen][:5]


@pytest.mark.parametrize("reference", [False, True])
def test_a_regression_predicts_shares_that_sum_to_one(screen, new_pairs, reference):
    cells = screen[screen.obs["perturbation"] == "control"][:40].copy() if reference else None
    regression = ConditionGP().fit(screen, keys=ScreenKeys(context=["cell_type"]))
    asked = ["control", *new_pairs]  # of no context: of both together
    made = regression.predict(asked, reference=cells)
    np.testing.assert_allclose(total(made), 1e4, rtol=1e-4)
    assert not made.layers["lfc"][0].any(), "control in, control out"


@pytest.mark.parametrize("reference", [False, True])
def test_a_stack_predicts_shares_that_sum_to_one(screen, new_pairs, reference):
    cells = screen[screen.obs["perturbation"] == "control"][:40].copy() if reference else None
    stack = StackedMean(seed=0).fit(screen, keys=ScreenKeys(context=["cell_type"]))
    made = stack.predict(new_pairs, reference=cells)
    # Weighted means of closed profiles: not closed to the last digit, but for what they differ by.
    np.testing.assert_allclose(total(made), 1e4, rtol=0.01)


def test_a_part_of_a_librarys_genes_stays_a_part(screen):
    sums = np.asarray(screen.X.sum(axis=1)).ravel()
    keys = ScreenKeys("perturbation", control="control")
    profiles = TrainingProfiles.from_screen(
        screen, None, keys=replace(keys, context=["cell_type"]), kind="pseudobulk",
        with_variances=True, library=3.0 * sums,
    )  # fmt: skip
    made = StackedMean(seed=0).fit_profiles(profiles).predict(["pert_01", "pert_02"])
    np.testing.assert_allclose(total(made), 1e4 / 3, rtol=0.05)


def test_one_answer_of_a_regression_is_that_of_many(screen, new_pairs):
    alone = FirstKnown(ConditionGP(), NoChange()).fit(
        screen, keys=ScreenKeys(context=["cell_type"])
    )
    many = ConditionGP().fit(screen, keys=ScreenKeys(context=["cell_type"]))
    made, same = (one.predict(new_pairs).layers["lfc"] for one in (alone, many))
    np.testing.assert_allclose(made, same, rtol=1e-4, atol=1e-5)


def test_means_over_cells_need_not_sum_to_anything(screen):
    stack = StackedMean(seed=0, profile="cell_mean").fit(
        screen, keys=ScreenKeys(context=["cell_type"])
    )
    assert (np.abs(total(stack.predict(["pert_01+pert_02"])) / 1e4 - 1) > 0.02).all()
