"""The law of true errors, from errors that were measured with noise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from scipy.stats import t as student

from scvi_perturb.predictors.stack.intervals import GRID, error_quantiles
from scvi_perturb.predictors.stack.stacked_mean import agreement_factor

N = 20_000


def covered(quantiles, true_ratio, level):
    """Return the share of true errors within the quantile of a level."""
    return np.mean(np.abs(true_ratio) <= np.interp(level, GRID, quantiles))


@pytest.mark.parametrize("noise", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("law", ["normal", "heavy"])
def test_noise_is_taken_out(law, noise):
    """Coverage of true errors is right whatever their law and however much noise was on them."""
    random = np.random.default_rng(0)
    size = random.uniform(0.5, 2.0, N)
    ratio = random.standard_normal(N)
    if law == "heavy":
        ratio = student(3).rvs(N, random_state=random) / np.sqrt(3)
    spread = noise * random.uniform(0.5, 1.5, N)
    error = size * ratio + np.sqrt(spread) * random.standard_normal(N)
    found = error_quantiles(error, size**2, spread)
    assert (np.diff(found) >= 0).all()
    assert found[0] == 0
    # The shares of the mixture are estimated: with noise thrice the errors, from what is left.
    for level in (0.5, 0.8, 0.9, 0.95):
        assert covered(found, ratio, level) == pytest.approx(level, abs=0.02 + 0.01 * noise)


def test_with_noise_left_in_heavy_tails_are_covered_too_well():
    """What the deconvolution is for: quantiles of noisy errors are too wide in the middle."""
    random = np.random.default_rng(1)
    ratio = student(2.5).rvs(N, random_state=random) / np.sqrt(5)
    error = ratio + 1.5 * random.standard_normal(N)
    naive = np.quantile(np.abs(error) / np.sqrt(1 + 1.5**2), GRID)
    found = error_quantiles(error, np.ones(N), np.full(N, 1.5**2))
    assert covered(naive, ratio, 0.5) > 0.56
    assert covered(found, ratio, 0.5) == pytest.approx(0.5, abs=0.04)


def test_without_noise_quantiles_are_those_measured():
    error = np.random.default_rng(0).standard_normal((50, 4))
    found = error_quantiles(error, np.full((50, 4), 4.0), np.zeros((50, 4)))
    np.testing.assert_allclose(found, np.quantile(np.abs(error) / 2, GRID))


def test_pure_noise_leaves_little():
    random = np.random.default_rng(0)
    found = error_quantiles(random.standard_normal(N), np.full(N, 0.01), np.ones(N))
    # In units of a standard deviation of 0.1: the noise alone would be ten times wider.
    assert np.interp(0.9, GRID, found) < 0.35 * norm.ppf(0.95) / 0.1


def test_genes_without_variance_say_nothing():
    error, variance = np.array([[1.0, 5.0]]), np.array([[1.0, 0.0]])
    found = error_quantiles(error, variance, np.zeros((1, 2)))
    np.testing.assert_allclose(found, 1.0)
    assert not error_quantiles(error, np.zeros((1, 2)), np.zeros((1, 2))).any()


@pytest.mark.parametrize("scale", [0.2, np.geomspace(0.2, 1, 5000)])
def test_two_that_disagree_are_better_together_by_most_of_what_is_possible(scale):
    """With independent errors of one law, the mean of two has half the variance."""
    random = np.random.default_rng(0)
    n_genes = 5000
    ours, theirs = scale * random.standard_normal((2, 3, n_genes))
    factor = agreement_factor(ours - theirs, 0.5, np.broadcast_to(scale, (3, n_genes)))
    # Of a variance of 5000 values, twice over.
    np.testing.assert_allclose(factor**2, 1 - 0.85 / 2, atol=4 * np.sqrt(2 / n_genes))


def test_two_that_agree_are_as_good_as_one_and_never_perfect():
    scale = np.ones((1, 4))
    np.testing.assert_allclose(agreement_factor(np.zeros((1, 4)), 0.5, scale), 1.0)
    np.testing.assert_allclose(agreement_factor(np.full((1, 4), 9.0), 0.5, scale), 0.5)
    np.testing.assert_allclose(agreement_factor(np.full((1, 4), 9.0), 0.0, scale), 1.0)
