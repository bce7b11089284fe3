"""Predicted profiles of summed counts: shares that sum to one."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.data import simulate_screen
from scvi_perturb.predictors import StackedMean
from scvi_perturb.predictors._closure import closed


def total(made):
    return np.expm1(np.asarray(made.X, np.float64)).sum(axis=1)


def test_closing_scales_all_genes_alike_and_keeps_what_is_closed():
    random = np.random.default_rng(0)
    shares = random.gamma(1.0, size=(4, 50))
    control = np.log1p(1e4 * shares / shares.sum(1, keepdims=True))
    change = random.normal(0.2, 0.3, control.shape)
    made = closed(change, control)
    counts = np.expm1(control + made)
    np.testing.assert_allclose(counts.sum(1), 1e4)
    wanted = np.maximum(np.expm1(control + change), 0)
    ratio = counts[wanted > 0] / wanted[wanted > 0]
    factor = np.broadcast_to(1e4 / wanted.sum(1, keepdims=True), wanted.shape)[wanted > 0]
    np.testing.assert_allclose(ratio, factor)
    np.testing.assert_allclose(closed(made, control), made, atol=1e-12)
    np.testing.assert_allclose(closed(0 * control, control), 0, atol=1e-12)


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(n_cells=1500, n_genes=60, seed=0)


@pytest.mark.parametrize("reference", [False, True])
def test_a_stack_predicts_shares_that_sum_to_one(screen, reference):
    cells = screen[screen.obs["perturbation"] == "control"][:40].copy() if reference else None
    stack = StackedMean(seed=0).fit(screen, context_keys=["cell_type"])
    seen = set(screen.obs["perturbation"])
    names = [name for name in seen if "+" not in name and name != "control"]
    new = [f"{a}+{b}" for a in names for b in names if a < b and f"{a}+{b}" not in seen][:5]
    made = stack.predict(new, reference=cells)
    # Weighted means of closed profiles: not closed to the last digit, but for what they differ by.
    np.testing.assert_allclose(total(made), 1e4, rtol=0.01)


def test_means_over_cells_need_not_sum_to_anything(screen):
    stack = StackedMean(seed=0, profile="cell_mean").fit(screen, context_keys=["cell_type"])
    assert (np.abs(total(stack.predict(["pert_01+pert_02"])) / 1e4 - 1) > 0.02).all()
