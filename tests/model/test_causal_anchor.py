"""Factors that anchor draws on the reference: differences beyond chance, and no others."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_perturb.model.causal.fit import Anchor, reference_factors

N_CELLS, N_GENES = 400, 200


def anchor(ratio, n_cells=N_CELLS, *, mean=4.0, seed=0):
    """Return the anchor of Poisson counts that are so many times what is expected."""
    random = np.random.default_rng(seed)
    expected = np.full((n_cells, N_GENES), mean)
    made = Anchor.of(N_GENES)
    made.add(random.poisson(ratio * expected).astype(float), expected)
    return made


def test_what_is_as_expected_stays():
    # Means of 400 counts around 4 have a relative error of 1 / sqrt(1600): 2.5 %.
    factors = anchor(np.ones(N_GENES)).factors()
    assert np.abs(factors - 1).max() < 0.025


def test_differences_beyond_chance_are_found():
    ratio = np.exp(0.4 * np.random.default_rng(1).standard_normal(N_GENES))
    # Of the ratio of a sum of Poisson counts to what is expected: the variance that is assumed,
    # around one, and with it the James-Stein factor.
    away = (ratio - 1) ** 2
    chance = ratio / (4 * N_CELLS) + away / N_CELLS
    scatter = np.average(away, weights=1 / chance)
    expected = 1 + (ratio - 1) * scatter / (scatter + chance)
    error = np.sqrt(ratio / (4 * N_CELLS))
    assert (np.abs(anchor(ratio).factors() - expected) < 4 * error).all()


def test_few_cells_are_believed_less():
    ratio = np.exp(0.4 * np.random.default_rng(1).standard_normal(N_GENES))
    few, many = (anchor(ratio, n) for n in (4, N_CELLS))
    raw = few.observed / few.expected
    away = np.abs(raw - 1) > 1e-6
    shrunk = (few.factors() - 1)[away] / (raw - 1)[away]
    kept = (many.factors() - 1) / (many.observed / many.expected - 1)
    assert np.median(shrunk) < np.median(kept) <= 1
    assert ((shrunk >= 0) & (shrunk <= 1 + 1e-9)).mean() > 0.99
    assert (anchor(ratio, 1).factors() == 1).all()


def test_factors_are_bounded_and_sums_are_of_all_cells():
    ratio = np.where(np.arange(N_GENES) % 2, 0.01, 20.0)
    factors = anchor(ratio).factors()
    assert (factors.min(), factors.max()) == (0.2, 5.0)
    twice, once = Anchor.of(1), Anchor.of(1)
    counts, expected = np.array([[1.0], [5.0]]), np.array([[2.0], [2.0]])
    once.add(counts, expected)
    for i in range(2):
        twice.add(counts[i : i + 1], expected[i : i + 1])
    assert (twice.n_cells, twice.observed[0], twice.squared[0]) == (2, 6.0, 10.0)
    assert twice.factors() == once.factors()


@pytest.mark.parametrize("n_parts", [1, 3])
def test_each_group_has_its_factors(n_parts):
    random = np.random.default_rng(0)
    group = np.arange(N_CELLS) % 2
    share = np.full((N_CELLS, N_GENES), 1 / N_GENES)
    library = np.full(N_CELLS, 4.0 * N_GENES)
    ratio = np.exp(0.4 * random.standard_normal((2, N_GENES)))
    counts = random.poisson(ratio[group] * 4.0).astype(float)
    parts = (
        (
            group[rows],
            {"X": torch.from_numpy(counts[rows]), "library": torch.from_numpy(library[rows])},
            torch.from_numpy(share[rows]),
        )
        for rows in np.array_split(np.arange(N_CELLS), n_parts)
    )
    found = reference_factors(parts, N_GENES)
    assert sorted(found) == [0, 1]
    for i in range(2):
        alone = Anchor.of(N_GENES)
        alone.add(counts[group == i], np.full((N_CELLS // 2, N_GENES), 4.0))
        np.testing.assert_allclose(found[i], alone.factors())
