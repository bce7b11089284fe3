"""A prediction known to be calibrated passes, one known not to be fails, at either level."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

from scvi_perturb.benchmark import evaluate
from scvi_perturb.metrics import LEVELS, pseudobulk, pseudobulk_variance
from tests.benchmark._world import make_trial, per_condition, totals, truth_cells


@pytest.fixture(scope="module")
def trial():
    return make_trial()


@pytest.fixture(scope="module")
def honest(trial):
    return truth_cells(trial)


def squeezed(cells, share=0.5):
    """Return cells drawn half-way to their mean: too alike, the mean kept."""
    rng = np.random.default_rng(0)

    def change(values, name):
        del name
        target = share * values + (1 - share) * values.mean(0)
        return np.floor(target + rng.random(values.shape))

    return per_condition(cells, change)


def test_cells_of_the_truth_are_calibrated(trial, honest):
    found = totals(evaluate(trial, honest))
    n_values = len(trial.conditions) * 400
    for level in LEVELS:
        # Ranks of one cell in many genes go together, so the error is that of cells alone.
        error = np.sqrt(level * (1 - level) / n_values)
        name = f"cell_coverage_{100 * level:.0f}"
        assert found[name] == pytest.approx(level, abs=4 * error), name
    # The mean distance of an empirical distribution of 400 ranks, and of 400 draws, to its law.
    floor = np.sqrt(2 * 2 / (np.pi * 400)) * np.sqrt(1 / 6)
    assert found["pit_ece"] < 1.3 * floor


def test_cells_too_alike_are_not(trial, honest):
    good, bad = (totals(evaluate(trial, cells)) for cells in (honest, squeezed(honest)))
    assert bad["cell_coverage_90"] < 0.8
    assert bad["pit_ece"] > 2 * good["pit_ece"]
    assert bad["crps"] > good["crps"]
    assert bad["cell_width_90"] < good["cell_width_90"]


def stated(trial, cells, factor):
    """Return the means of cells with `factor` times their standard error."""
    rows = [cells[(cells.obs["perturbation"] == name).to_numpy()].X
            for name in trial.requests["perturbation"]]  # fmt: skip
    made = anndata.AnnData(
        np.stack([pseudobulk(values) for values in rows]),
        obs=trial.requests.set_axis([f"row{i}" for i in range(len(rows))]),
        layers={"std": factor * np.sqrt([pseudobulk_variance(values) for values in rows])},
    )
    made.var_names = cells.var_names
    return made


def test_honest_errors_of_effects_are_calibrated(trial):
    """Means of 50 cells with their own standard errors, against 400 cells with theirs."""
    few = truth_cells(trial, seed=2, n_cells=50)
    found = totals(evaluate(trial, stated(trial, few, 1.0), cells=False))
    n_values = len(trial.conditions) * trial.visible.n_vars
    for level in LEVELS:
        # Genes go together in programs; and errors of 50 skewed counts are not quite normal.
        error = np.sqrt(level * (1 - level) / (n_values / 4))
        name = f"effect_coverage_{100 * level:.0f}"
        assert found[name] == pytest.approx(level, abs=3 * error + 0.02), name


def test_understated_errors_of_effects_are_not(trial):
    few = truth_cells(trial, seed=2, n_cells=50)
    found = totals(evaluate(trial, stated(trial, few, 0.2), cells=False))
    assert found["effect_coverage_90"] < 0.7
    assert "cell_coverage_90" not in found  # the levels are not mixed
