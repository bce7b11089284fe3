"""Variances of errors from simulated ones, and intervals against explicit mixtures."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import norm

from scvi_perturb.predictors.stack.intervals import (
    LEVELS,
    ErrorCovariates,
    ErrorModel,
    _variance_weights,
)

TRUE = np.array([0.3, 0.3, 0.8, 0.5])


def draw_clues(rng, n_rows, n_genes):
    return ErrorCovariates(
        rng.normal(size=(n_rows, n_genes)),
        rng.gamma(1.0, size=(n_rows, n_genes)),
        rng.gamma(2.0, size=(n_rows, 1)) * rng.gamma(2.0, size=(1, n_genes)),
    )


def draw_errors(rng, variance, law="normal"):
    """Return errors of unit variance times the root of `variance`."""
    laws = {
        "normal": lambda: rng.normal(size=variance.shape),
        "laplace": lambda: rng.laplace(size=variance.shape) / np.sqrt(2),
        "student": lambda: rng.standard_t(5, size=variance.shape) / np.sqrt(5 / 3),
    }
    return laws[law]() * np.sqrt(variance)


def variance_of(covariates, weights):
    return np.tensordot(weights, covariates.stacked(), 1)


def learned(seed=0, n_rows=60, n_genes=150, law="normal", weights=TRUE, n_folds=5):
    rng = np.random.default_rng(seed)
    covariates = draw_clues(rng, n_rows, n_genes)
    noise = rng.gamma(2.0, 0.1, size=(n_rows, n_genes))
    error = draw_errors(rng, variance_of(covariates, np.asarray(weights)) + noise, law)
    unit = np.arange(n_rows)
    return ErrorModel.fit(error, noise, covariates, fold=unit % n_folds, unit=unit), rng


def test_clues_are_a_constant_the_squared_change_and_two_variances():
    rng = np.random.default_rng(0)
    covariates = draw_clues(rng, 5, 3)
    expected = [np.ones((5, 3)), covariates.mean**2, covariates.disagreement, covariates.posterior]
    np.testing.assert_array_equal(covariates.stacked(), expected)
    rows = np.array([True, False, True, False, False])
    np.testing.assert_array_equal(covariates.some(rows).stacked(), covariates.stacked()[:, [0, 2]])


@pytest.mark.parametrize("with_noise", [True, False])
def test_the_weights_of_clues_are_recovered(with_noise):
    """Within 4 standard errors of least squares with the variances known: those are the best.

    A squared normal error has twice its squared variance as variance. Weights found with estimated
    variances are as good in large samples; there are 40,000 errors.
    """
    rng = np.random.default_rng(1)
    covariates = draw_clues(rng, 200, 200)
    noise = rng.gamma(2.0, 0.1, size=(200, 200)) * with_noise
    total = variance_of(covariates, TRUE) + noise
    error = draw_errors(rng, total)
    unit = np.arange(200)
    found = ErrorModel.fit(error, noise, covariates, fold=unit % 4, unit=unit)
    design = covariates.stacked().reshape(4, -1) / total.ravel()
    uncertainty = np.sqrt(2 * np.diagonal(np.linalg.inv(design @ design.T)))
    np.testing.assert_array_less(np.abs(found.weights - TRUE), 4 * uncertainty)
    assert (uncertainty < 0.1 * TRUE).all()


def test_a_clue_that_tells_nothing_has_little_weight():
    found, _ = learned(n_rows=200, weights=[0.5, 0, 0, 0])
    share = found.weights * [1, 1, 1, 4]  # mean size of the covariates
    assert share[0] > 0.9 * share.sum()


@pytest.mark.parametrize("absent", [(2,), (3,), (2, 3), (1, 2, 3)])
def test_clues_that_are_zero_have_no_weight_and_others_theirs(absent):
    """What is learned is what is learned without them."""
    rng = np.random.default_rng(2)
    covariates = draw_clues(rng, 40, 100).stacked()
    covariates[list(absent)] = 0
    error = draw_errors(rng, np.tensordot(TRUE, covariates, 1))
    found = _variance_weights(error**2, np.zeros_like(error), covariates)
    kept = np.setdiff1d(np.arange(4), absent)
    assert not found[list(absent)].any()
    alone = _variance_weights(error**2, np.zeros_like(error), covariates[kept])
    np.testing.assert_array_equal(found[kept], alone)
    assert (np.tensordot(found, covariates, 1) > 0).all()


def test_errors_below_their_noise_leave_hardly_any_variance():
    rng = np.random.default_rng(3)
    covariates = draw_clues(rng, 30, 50)
    noise = np.full((30, 50), 2.0)
    error = draw_errors(rng, 0.5 * noise)
    unit = np.arange(30)
    found = ErrorModel.fit(error, noise, covariates, fold=unit % 3, unit=unit)
    variance = found.scale(covariates) ** 2
    assert (variance > 0).all()
    assert variance.mean() < 0.01 * noise.mean()


def test_no_errors_at_all_are_no_failure():
    zeros = np.zeros((6, 4))
    unit = np.arange(6)
    covariates = ErrorCovariates(zeros, zeros, zeros)
    found = ErrorModel.fit(zeros, zeros, covariates, fold=unit % 2, unit=unit)
    lower, upper = found.interval(covariates, np.zeros((2, 6, 4)), 0.9)
    np.testing.assert_array_equal(lower, 0)
    np.testing.assert_array_equal(upper, 0)
    np.testing.assert_array_equal(found.std(covariates), 0)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_spread_is_in_units_of_the_errors(factor):
    rng = np.random.default_rng(4)
    covariates = draw_clues(rng, 30, 50)
    error = draw_errors(rng, variance_of(covariates, TRUE))
    noise = np.full_like(error, 0.02)
    unit = np.arange(30)
    scaled = ErrorCovariates(
        factor * covariates.mean,
        factor**2 * covariates.disagreement,
        factor**2 * covariates.posterior,
    )
    first = ErrorModel.fit(error, noise, covariates, fold=unit % 3, unit=unit)
    second = ErrorModel.fit(factor * error, factor**2 * noise, scaled, fold=unit % 3, unit=unit)
    np.testing.assert_allclose(second.std(scaled), factor * first.std(covariates), rtol=1e-6)


def test_errors_of_a_normal_law_have_their_standard_deviation():
    found, rng = learned(n_rows=100)
    covariates = draw_clues(rng, 50, 150)
    # The scale of 15,000 errors is known to 1 / sqrt(2 * 15000) = 0.6 %, single weights less well.
    true = np.sqrt(variance_of(covariates, TRUE))
    np.testing.assert_allclose(np.mean(found.std(covariates) / true), 1, atol=0.03)
    np.testing.assert_allclose(found.std(covariates), true, rtol=0.15)
    for level in LEVELS:
        assert found.reach(level) == pytest.approx(norm.ppf((1 + level) / 2), rel=0.05)


@pytest.mark.parametrize("law", ["normal", "laplace", "student"])
def test_intervals_cover_new_errors_whatever_their_law(law):
    """Also where they matter: for small and for large stated errors."""
    spread, rng = learned(5, n_rows=100, law=law)
    covariates = draw_clues(rng, 40, 100)
    error = draw_errors(rng, variance_of(covariates, TRUE), law)
    wide = spread.scale(covariates) > np.median(spread.scale(covariates))
    for level in LEVELS:
        lower, upper = spread.interval(covariates, np.stack([covariates.mean] * 5), level)
        inside = (lower <= covariates.mean + error) & (covariates.mean + error <= upper)
        # Binomial errors of the 4,000 asked and of the quantile of 15,000 that were learned from;
        # 0.01 where the law is not normal, as the errors that were learned from have noise that is.
        one = level * (1 - level)
        bias = 0.01 * (law != "normal")
        tolerance = 4 * np.sqrt(one / 4000 + one / 15000) + bias
        assert inside.mean() == pytest.approx(level, abs=tolerance)
        # And a few percent of scale that weights of covariates may be off: 0.015 of coverage.
        tolerance = 4 * np.sqrt(one / 2000 + one / 15000) + bias + 0.015
        assert inside[wide].mean() == pytest.approx(level, abs=tolerance)
        assert inside[~wide].mean() == pytest.approx(level, abs=tolerance)


def mixture(spread, covariates, centres, level):
    """Return the interval of CV+, gene by gene, from a list with each value once a unit."""
    weights, stacked = spread.weights, covariates.stacked()
    lower, upper = np.zeros((2, *covariates.mean.shape))
    for i, g in np.ndindex(covariates.mean.shape):
        scale = np.sqrt(sum(w * stacked[j, i, g] for j, w in enumerate(weights)))
        above, below = [], []
        for k, n_units in enumerate(spread.units):
            for left, right in pairwise(spread.quantiles[k]):
                away = (left + right) / 2 * scale
                above += [centres[k, i, g] + away] * n_units
                below += [centres[k, i, g] - away] * n_units
        place = int(np.ceil(level * len(above) - 1e-9)) - 1
        upper[i, g] = sorted(above)[place]
        lower[i, g] = sorted(below, reverse=True)[place]
    return lower, upper


@pytest.mark.parametrize("level", [0.3, 0.9, 0.999])
def test_the_interval_is_that_of_the_mixture_over_folds(level):
    rng = np.random.default_rng(6)
    n_rows = 9
    covariates = draw_clues(rng, n_rows, 12)
    error = draw_errors(rng, variance_of(covariates, TRUE), "laplace")
    fold = np.array([0, 0, 0, 0, 1, 1, 2, 2, 2])
    unit = np.array([0, 1, 2, 3, 4, 5, 6, 6, 6])
    spread = ErrorModel.fit(error, np.zeros_like(error), covariates, fold=fold, unit=unit)
    np.testing.assert_array_equal(spread.units, [4, 2, 1])
    asked = draw_clues(rng, 2, 3)
    centres = asked.mean + rng.normal(size=(3, 2, 3))
    expected = mixture(spread, asked, centres, level)
    away = np.abs(np.subtract(spread.interval(asked, centres, level), expected))
    assert (away <= 1e-3 * (expected[1] - expected[0])).all()


def test_reach_is_the_quantile_over_folds_by_their_units():
    quantiles = np.stack([np.linspace(0, 1, 201), np.linspace(2, 3, 201)])
    for units, level, expected in (([1, 1], 0.25, 0.5), ([1, 1], 0.75, 2.5), ([3, 1], 0.75, 1.0)):
        spread = ErrorModel(TRUE, quantiles, np.array(units))
        assert spread.reach(level) == pytest.approx(expected, abs=0.006)


def test_where_folds_agree_the_interval_lies_evenly_about_the_prediction():
    spread, rng = learned(7)
    covariates = draw_clues(rng, 4, 10)
    lower, upper = spread.interval(covariates, np.stack([covariates.mean] * 5), 0.8)
    np.testing.assert_allclose(upper - covariates.mean, covariates.mean - lower)
    np.testing.assert_allclose(
        upper - covariates.mean, spread.reach(0.8) * spread.scale(covariates), rtol=1e-3
    )


def test_intervals_widen_with_the_level_and_where_folds_disagree():
    spread, rng = learned(8)
    covariates = draw_clues(rng, 6, 20)
    centres = np.stack([covariates.mean] * 5)
    widths = [np.subtract(*spread.interval(covariates, centres, p)[::-1]) for p in LEVELS]
    for narrow, wide in pairwise(widths):
        assert (narrow < wide).all()
    apart = centres + 3 * spread.scale(covariates) * np.arange(-2, 3)[:, None, None]
    assert (np.subtract(*spread.interval(covariates, apart, 0.9)[::-1]) > widths[2]).all()


def test_genes_that_never_vary_do_not_spoil_the_others():
    """They are 0 in all covariates; where errors go with changes, the constant has no weight."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(20, 30))
    error = rng.normal(size=(20, 30)) * np.abs(mean)
    never = np.zeros((20, 8))
    unit = np.arange(20)
    made = []
    for parts in ((mean, error), (np.hstack([mean, never]), np.hstack([error, never]))):
        nothing = np.zeros_like(parts[0])
        covariates = ErrorCovariates(parts[0], nothing, nothing)
        spread = ErrorModel.fit(parts[1], nothing, covariates, fold=unit % 4, unit=unit)
        made.append((spread, *spread.interval(covariates, np.stack([covariates.mean] * 4), 0.9)))
    (first, *expected), (second, *found) = made
    assert first.weights[0] == second.weights[0] == 0
    # The least variance that weighs errors is a thousandth of their mean, which differs.
    np.testing.assert_allclose(second.quantiles, first.quantiles, rtol=1e-3)
    for ends, own in zip(found, expected, strict=True):
        np.testing.assert_allclose(ends[:, :30], own, rtol=1e-3)
        np.testing.assert_array_equal(ends[:, 30:], 0)


@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_ranks_of_measured_errors_are_even(noise):
    """Whatever the noise: it is taken out of the law, and put back where it is compared."""
    random = np.random.default_rng(3)
    covariates = ErrorCovariates(np.zeros((200, 50)), np.zeros((200, 50)), np.ones((200, 50)))
    error = random.standard_t(4, (200, 50)) / np.sqrt(2)
    error = error + np.sqrt(noise) * random.standard_normal((200, 50))
    extra = np.full((200, 50), noise)
    fold = np.repeat(np.arange(4), 50)
    spread = ErrorModel.fit(error, extra, covariates, fold=fold, unit=np.arange(200))
    ranks = spread.rank(covariates, error, extra)
    for level in (0.1, 0.5, 0.9):
        assert np.mean(ranks <= level) == pytest.approx(level, abs=0.02)
