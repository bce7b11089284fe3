"""Ranks are uniform where the prediction is right, at the level of cells and of effects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from scvi_perturb.metrics._calibration import (
    LEVELS,
    calibration_error,
    coverage,
    effect_coverage,
    effect_pit,
    interval_width,
    randomized_pit,
)

LEAST_P = 1e-4


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def brute_force_pit(predicted, observed, seed):
    place = np.random.default_rng(seed).random(observed.shape)
    pit = np.empty(observed.shape)
    for i, j in np.ndindex(observed.shape):
        below = (predicted[:, j] < observed[i, j]).sum()
        equal = (predicted[:, j] == observed[i, j]).sum()
        pit[i, j] = (below + place[i, j] * (equal + 1)) / (len(predicted) + 1)
    return pit


def test_ranks_equal_those_counted_one_by_one(rng):
    predicted, observed = rng.poisson(1.0, (9, 4)), rng.poisson(2.0, (7, 4))
    expected = brute_force_pit(predicted, observed, 3)
    np.testing.assert_allclose(randomized_pit(predicted, observed, seed=3), expected)


@pytest.mark.parametrize("m", [1, 4, 50])
@pytest.mark.parametrize(
    "draw",
    [lambda rng, shape: rng.normal(size=shape), lambda rng, shape: rng.poisson(0.3, shape)],
    ids=["continuous", "mostly zeros"],
)
def test_ranks_are_exactly_uniform_whatever_the_number_of_cells_and_ties(rng, draw, m):
    """One real cell a gene, so that all ranks are independent."""
    pit = randomized_pit(draw(rng, (m, 5000)), draw(rng, (1, 5000)), seed=1)
    assert stats.kstest(pit.ravel(), "uniform").pvalue > LEAST_P


def test_only_the_seed_decides(rng):
    x, y = rng.poisson(0.5, (2, 30, 4))
    np.testing.assert_array_equal(randomized_pit(x, y, seed=1), randomized_pit(x, y, seed=1))
    assert not np.array_equal(randomized_pit(x, y, seed=1), randomized_pit(x, y, seed=2))


@pytest.mark.parametrize("level", LEVELS)
def test_coverage_of_the_truth_and_of_cells_that_are_too_alike(rng, level):
    predicted, observed = rng.normal(size=(2, 400, 300))
    pit = randomized_pit(predicted, observed)
    error = np.sqrt(level * (1 - level) * (1 / 400 + 1 / 400))
    assert coverage(pit, level).shape == (300,)
    assert coverage(pit, level).mean() == pytest.approx(level, abs=4 * error / np.sqrt(300))
    assert coverage(pit, level).std() == pytest.approx(error, rel=0.25)
    narrow = coverage(randomized_pit(0.5 * predicted, observed), level).mean()
    expected = 2 * stats.norm.cdf(0.5 * stats.norm.ppf((1 + level) / 2)) - 1
    assert narrow == pytest.approx(expected, abs=0.01)


def test_coverage_of_ranks_that_are_given():
    pit = np.array([[0.05, 0.5], [0.3, 0.5], [0.74, 0.5], [0.99, 0.5]])
    np.testing.assert_allclose(coverage(pit, 0.5), [0.5, 1.0])
    np.testing.assert_allclose(coverage(pit, 0.9), [0.75, 1.0])


def test_cells_without_variance_fail(rng):
    observed = rng.normal(size=(400, 50))
    same = np.repeat(np.median(observed, axis=0, keepdims=True), 400, axis=0)
    pit = randomized_pit(same, observed)
    assert ((pit < 1 / 400) | (pit > 1 - 1 / 400)).all()
    assert coverage(pit, 0.95).max() == 0
    assert interval_width(same, 0.95).max() == 0
    assert calibration_error(pit) == pytest.approx(0.25, abs=0.002)


@pytest.mark.parametrize("level", LEVELS)
def test_width_is_that_of_the_distribution(rng, level):
    """The share of new values between the ends is the level: the ends suit the ranks."""
    predicted, observed = rng.normal(size=(39, 20_000)), rng.normal(size=20_000)
    ends = np.quantile(predicted, [(1 - level) / 2, (1 + level) / 2], axis=0, method="weibull")
    inside = ((observed >= ends[0]) & (observed <= ends[1])).mean()
    assert inside == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 20_000))
    np.testing.assert_allclose(interval_width(predicted, level), ends[1] - ends[0])
    np.testing.assert_allclose(
        interval_width(3 * predicted + 1, level), 3 * interval_width(predicted, level)
    )


@pytest.mark.parametrize(("n", "m"), [(500, 500), (100, 1000)])
def test_sampling_floor_of_the_error_is_as_documented(rng, n, m):
    predicted, observed = rng.normal(size=(m, 300)), rng.normal(size=(n, 300))
    error = calibration_error(randomized_pit(predicted, observed))
    assert error == pytest.approx(0.31 * np.sqrt(1 / n + 1 / m), rel=0.15)


def test_error_ends_at_a_half_and_sees_shift_and_spread(rng):
    predicted, observed = rng.normal(size=(2, 500, 100))
    right = calibration_error(randomized_pit(predicted, observed))
    assert calibration_error(randomized_pit(predicted + 1, observed)) > 5 * right
    assert calibration_error(randomized_pit(2 * predicted, observed)) > 4 * right
    assert calibration_error(randomized_pit(predicted + 99, observed)) == pytest.approx(
        0.5, abs=0.001
    )
    middles = (np.arange(20) + 0.5)[:, None] / 20
    assert calibration_error(middles - 0.001) == pytest.approx(0.025)


def test_effect_ranks_are_uniform_if_the_standard_error_is_right(rng):
    std, noise = rng.uniform(0.1, 2, (2, 5000))
    predicted = rng.normal(size=5000)
    observed = predicted + std * rng.normal(size=5000) + noise * rng.normal(size=5000)
    pit = effect_pit(predicted, std, observed, noise**2)
    assert stats.kstest(pit, "uniform").pvalue > LEAST_P
    for level in LEVELS:
        share = effect_coverage(predicted, std, observed, noise**2, level=level)
        assert share == pytest.approx(level, abs=4 * np.sqrt(level * (1 - level) / 5000))
    # Forgetting the noise of the measurement, or the error of the prediction, covers too little.
    assert effect_coverage(predicted, std, observed, 0.0) < 0.8
    assert effect_coverage(predicted, 0.0, observed, noise**2) < 0.8


def test_effect_ranks_without_any_variance():
    pit = effect_pit(np.zeros(3), 0.0, np.array([-1.0, 0.0, 1.0]), 0.0)
    np.testing.assert_array_equal(pit, [0.0, 0.5, 1.0])
    assert effect_coverage(np.zeros(3), 0.0, np.array([-1.0, 2.0, 1.0]), 0.0) == 0


def test_effect_of_known_size():
    pit = effect_pit(np.array([1.0]), np.array([3.0]), np.array([6.0]), np.array([16.0]))
    assert pit[0] == pytest.approx(stats.norm.cdf(1.0))


def test_effects_that_are_not_known_are_left_out():
    changes, std = np.array([0.0, 0.0, 9.0]), np.array([1.0, np.nan, 1.0])
    assert np.isnan(effect_pit(np.zeros(3), std, changes, 0.0)[1])
    assert effect_coverage(np.zeros(3), std, changes, 0.0) == 0.5
    assert np.isnan(effect_coverage(np.zeros(3), 1.0, changes, np.nan))


def test_refuses_what_it_cannot_compare(rng):
    x = rng.normal(size=(5, 3))
    with pytest.raises(ValueError, match="same genes"):
        randomized_pit(x, x[:, 1:])
    with pytest.raises(ValueError, match="same genes"):
        randomized_pit(x[:0], x)
    with pytest.raises(ValueError, match="observed has 3 values that are not finite"):
        randomized_pit(x, np.where(np.arange(5)[:, None] == 1, np.inf, x))
    with pytest.raises(ValueError, match="level=90 is out of range"):
        coverage(x, 90)
    with pytest.raises(ValueError, match="randomized_pit"):
        calibration_error(np.empty((0, 3)))
    with pytest.raises(ValueError, match="same genes"):
        effect_pit(np.zeros(3), 1.0, np.zeros(1), 0.0)
    with pytest.raises(ValueError, match="1 values of `std` are negative"):
        effect_pit(np.zeros(3), np.array([1.0, -1.0, 1.0]), np.zeros(3), 0.0)
