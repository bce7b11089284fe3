"""Factors that scale draws to their reference: differences beyond chance, and no others."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.model.causal.draw import reference_factors
from scvi_perturb.model.causal.metadata import batch_depths, metadata_library

N_CELLS, N_GENES = 400, 200


def cells(ratio, n_cells=N_CELLS, *, mean=4.0, seed=0):
    """Return Poisson counts that are so many times what is expected, and what is expected."""
    expected = np.full((n_cells, N_GENES), mean)
    return np.random.default_rng(seed).poisson(ratio * expected).astype(float), expected


def factors_of(counts, expected):
    """Return the factors of cells of one group."""
    group = np.zeros(len(counts), dtype=np.int64)
    (factors,) = reference_factors([(group, counts, expected)], 1, counts.shape[1])
    return factors


def test_what_is_as_expected_stays():
    # Means of 400 counts around 4 have a relative error of 1 / sqrt(1600): 2.5 %.
    factors = factors_of(*cells(np.ones(N_GENES)))
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
    assert (np.abs(factors_of(*cells(ratio)) - expected) < 4 * error).all()


def test_few_cells_are_believed_less():
    ratio = np.exp(0.4 * np.random.default_rng(1).standard_normal(N_GENES))
    few, many = (cells(ratio, n) for n in (4, N_CELLS))
    raw = few[0].sum(0) / few[1].sum(0)
    away = np.abs(raw - 1) > 1e-6
    shrunk = (factors_of(*few) - 1)[away] / (raw - 1)[away]
    kept = (factors_of(*many) - 1) / (many[0].sum(0) / many[1].sum(0) - 1)
    assert np.median(shrunk) < np.median(kept) <= 1
    assert ((shrunk >= 0) & (shrunk <= 1 + 1e-9)).mean() > 0.99
    assert (factors_of(*cells(ratio, 1)) == 1).all()


def test_factors_are_bounded_and_sums_are_of_all_cells():
    ratio = np.where(np.arange(N_GENES) % 2, 0.01, 20.0)
    factors = factors_of(*cells(ratio))
    assert (factors.min(), factors.max()) == (0.2, 5.0)
    counts, expected = np.array([[8.0], [9.0], [10.0]]), np.full((3, 1), 2.0)
    one = np.zeros(1, dtype=np.int64)
    parts = [(one, counts[i : i + 1], expected[i : i + 1]) for i in range(3)]
    (in_turn,) = reference_factors(parts, 1, 1)
    assert in_turn == factors_of(counts, expected)
    assert 1 < in_turn < 4.5


@pytest.mark.parametrize("n_parts", [1, 3])
def test_each_group_has_its_factors(n_parts):
    random = np.random.default_rng(0)
    group = np.arange(N_CELLS) % 2
    share = np.full((N_CELLS, N_GENES), 1 / N_GENES)
    library = np.full(N_CELLS, 4.0 * N_GENES)
    ratio = np.exp(0.4 * random.standard_normal((2, N_GENES)))
    counts = random.poisson(ratio[group] * 4.0).astype(float)
    expected = share * library[:, None]
    parts = (
        (group[rows], counts[rows], expected[rows])
        for rows in np.array_split(np.arange(N_CELLS), n_parts)
    )
    found = reference_factors(parts, 2, N_GENES)
    assert found.shape == (2, N_GENES)
    for i in range(2):
        alone = factors_of(counts[group == i], np.full((N_CELLS // 2, N_GENES), 4.0))
        np.testing.assert_allclose(found[i], alone)


def test_library_sizes_of_metadata_are_those_of_the_batch():
    rng = np.random.default_rng(0)
    batch = np.repeat([0, 1], 2000)
    library = np.exp(np.where(batch == 0, 7.0, 9.0) + 0.2 * rng.standard_normal(4000))
    depths = batch_depths(library, batch, 2)
    asked = np.repeat([0, 1, -1], 2000)  # -1: no batch is given
    drawn = metadata_library(asked, np.zeros(6000), depths, library_size="reference", seed=0)
    means, spread = (f(np.log(drawn).reshape(3, -1), axis=1) for f in (np.mean, np.std))
    np.testing.assert_allclose(means, [7.0, 9.0, 8.0], atol=0.1)
    np.testing.assert_allclose(spread, [0.2, 0.2, np.log(library).std()], rtol=0.1)
