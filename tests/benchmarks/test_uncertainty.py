"""The benchmark of uncertainty: its oracles, and what it keeps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks._oracle import oracle_profiles, true_profiles
from benchmarks.uncertainty import kept_error
from scvi_perturb.data import SimulatorConfig, simulate_screen


@pytest.fixture(scope="module")
def screen():
    config = SimulatorConfig(
        n_perturbations=3, n_combinations=1, n_contexts=2, interaction_strength=0.5
    )
    return simulate_screen(n_cells=400, n_genes=60, config=config, seed=0)


@pytest.fixture(scope="module")
def asked(screen):
    obs = screen.obs[screen.obs["perturbation"] != "control"]
    rows = obs[["perturbation", "cell_type"]].drop_duplicates().astype(str)
    return rows[rows["perturbation"].str.contains("\\+")].reset_index(drop=True)


def test_who_knows_the_form_misses_the_interaction_alone(screen, asked):
    true = true_profiles(screen, asked)
    by_form = oracle_profiles(screen, asked, "unseen_combination")
    single = asked.assign(perturbation=asked["perturbation"].str.partition("+")[0])
    assert not np.allclose(true, by_form)
    # the same cells are drawn for all conditions, so what has no interaction is exactly known
    np.testing.assert_array_equal(
        true_profiles(screen, single), oracle_profiles(screen, single, "unseen_combination")
    )


def test_features_tell_most_of_an_effect():
    """From forty others; of those that are asked for, the true effect is not looked at."""
    config = SimulatorConfig(n_perturbations=40, n_combinations=0, n_contexts=1)
    screen = simulate_screen(n_cells=200, n_genes=60, config=config, seed=0)
    single = pd.DataFrame({"perturbation": ["pert_01", "pert_02"], "cell_type": "type_01"})
    control = true_profiles(screen, single.assign(perturbation="control"))
    true, told = (
        true_profiles(screen, single),
        oracle_profiles(screen, single, "unseen_perturbation"),
    )
    error, size = ((told - true) ** 2).sum(), ((true - control) ** 2).sum()
    assert 0 < error < 0.5 * size
    screen.uns["truth"]["effects"][:2] = 0.0
    blind = oracle_profiles(screen, single, "unseen_perturbation")
    np.testing.assert_allclose(blind, told, atol=0.2 * np.abs(told - control).max())


def test_of_a_dose_all_is_known(screen, asked):
    single = asked.assign(perturbation=asked["perturbation"].str.partition("+")[0])
    true = true_profiles(screen, single)
    np.testing.assert_array_equal(oracle_profiles(screen, single, "dose"), true)


def test_the_half_that_is_kept_is_that_of_the_least():
    own = pd.DataFrame({"seed": 0, "fold": [0, 0, 1, 1], "error": [1.0, 3, 5, 7],
                        "size": 10.0, "by": [1, 2, 4, 3]})  # fmt: skip
    assert kept_error(own, "by") == pytest.approx((1 + 7) / 20)
    assert np.isnan(kept_error(own.assign(by=[np.nan, 2, 4, 3]), "by"))
