"""What is learned: no effect where nothing was done, and effects where something was."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.metrics import energy_distance
from scvi_perturb.testing import SETUP, SINGLE, dense, make_screen

TIMES = 5


@pytest.fixture(scope="module")
def accurate(case):
    """A model that was trained until it knows something, on strong effects."""
    adata = make_screen(
        n_cells=700,
        n_perturbations=3,
        n_combinations=1,
        effect_size=1.5,
        library_size=1000.0,
        control_fraction=0.4,
    )
    case.model.setup_anndata(adata, **SETUP)
    init, train = case.accurate
    model = case.model(adata, **init)
    model.train(**train)
    return model


@pytest.fixture(scope="module")
def starts(accurate):
    """Training controls, their positions, and what stage one makes of them."""
    is_control = (accurate.adata.obs["perturbation"] == "control").to_numpy()
    chosen = np.intersect1d(np.flatnonzero(is_control), accurate.train_indices)
    draws = accurate.posterior_predictive_sample(n_samples=TIMES, indices=chosen).todense()
    return accurate.adata[chosen].copy(), np.concatenate([log(draws[..., k]) for k in range(TIMES)])


def log(counts):
    counts = dense(counts)
    return np.log1p(1e3 * counts / counts.sum(axis=1, keepdims=True))


def drawn(model, name, reference):
    """Return every reference cell under a perturbation, several times."""
    draws = (
        model.sample([name], reference=reference, n_samples=None, seed=seed)
        for seed in range(TIMES)
    )
    return np.concatenate([log(cells.X) for cells in draws])


def shift(one, two):
    """Return the difference of means in sampling errors of one draw a cell, over genes."""
    error = np.sqrt((one.var(axis=0) + two.var(axis=0)) / (len(one) / TIMES))
    return np.sqrt((((one.mean(axis=0) - two.mean(axis=0)) / error) ** 2).mean())


def test_control_in_no_effect_out(accurate, starts):
    # What comes out is compared with what stage one makes of the very same cells: that isolates
    # the effect from how well cells are reconstructed.
    reference, unchanged = starts
    control = drawn(accurate, "control", reference)
    # The root mean square of n genes has a standard error of 1 / sqrt(2 n); two of them are room
    # for what a processor rounds otherwise in training.
    room = 2 / np.sqrt(2 * control.shape[1])
    assert shift(control, unchanged) < 1 + room, "the sampling error of one draw a cell"
    n = len(reference)
    random = np.random.default_rng(0)
    halves = []
    for _ in range(20):
        order = random.permutation(len(unchanged))
        halves.append(energy_distance(unchanged[order[:n]], unchanged[order[n : 2 * n]]))
    assert energy_distance(control[:n], unchanged[:n]) < max(halves) + np.std(halves)
    assert 0.9 < control.var(axis=0).sum() / unchanged.var(axis=0).sum() < 1.1


def test_treatment_in_effect_out(accurate, starts):
    reference, unchanged = starts
    assert shift(drawn(accurate, SINGLE, reference), unchanged) > 3


def test_predicted_effect_of_control_is_none(accurate):
    effects = accurate.predict(["control", SINGLE], n_samples=500)
    none, strong = np.abs(effects.layers["lfc"])
    assert none.mean() < 0.3 * strong.mean()
    lower, upper = effects.layers["lower"], effects.layers["upper"]
    changed = ((lower > 0) | (upper < 0)).mean(axis=1)
    assert changed[0] < 0.5 < changed[1]


def test_cells_are_likelier_under_their_own_condition(case, accurate):
    adata = accurate.adata
    cells = np.flatnonzero((adata.obs["perturbation"] == SINGLE).to_numpy())[:60]
    verb = getattr(accurate, case.likelihood)
    own = verb(indices=cells, n_samples=32)
    for name in ("control", "pert_02"):
        wrong = adata[cells].copy()
        wrong.obs["perturbation"] = name
        gain = own - verb(wrong, n_samples=32)
        assert gain.mean() > 3 * gain.std() / len(gain) ** 0.5
