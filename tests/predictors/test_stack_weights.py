"""Weights of a stack against quadratic programs that scipy solves, and against known solutions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize

from scvi_perturb.predictors.stack.fit import _N_PRIOR as N_PRIOR
from scvi_perturb.predictors.stack.fit import _solve, moments_of, stack_weights


def problem(seed, n_units, n_members=4, noise=1.0, mixture=None):
    """Return truth, predictions and units; the truth is a mixture of predictions and noise."""
    rng = np.random.default_rng(seed)
    unit = np.repeat(np.arange(n_units), rng.integers(1, 4, n_units))
    predicted = rng.normal(size=(n_members, len(unit), 15))
    predicted += 0.7 * rng.normal(size=predicted.shape[1:])  # members are alike
    mixture = rng.dirichlet(np.ones(n_members)) if mixture is None else np.array(mixture)
    truth = np.tensordot(mixture, predicted, 1) + noise * rng.normal(size=predicted.shape[1:])
    return truth, predicted, unit


def program(gram, goal):
    """Minimise `w' gram w / 2 - w' goal` on the simplex."""
    n, scale = len(goal), np.diag(gram).mean()
    found = minimize(
        lambda w: (w @ gram @ w / 2 - w @ goal) / scale,
        np.full(n, 1 / n),
        jac=lambda w: (gram @ w - goal) / scale,
        bounds=[(0, 1)] * n,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones(n)},
        method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    )
    assert found.success
    return found.x


def with_prior(between, across, prior):
    """Return the moments with those of more units, that are as the prior says."""
    n_units = len(across)
    gram, goal = between.sum(axis=0), across.sum(axis=0)
    return gram * (1 + N_PRIOR / n_units), goal + N_PRIOR / n_units * gram @ prior


def test_moments_are_sums_over_rows_and_genes():
    truth, predicted, unit = problem(0, n_units=5)
    between, across, own = moments_of(truth, predicted, unit)
    for i in range(5):
        rows = unit == i
        expected = np.einsum("arg,brg->ab", predicted[:, rows], predicted[:, rows])
        np.testing.assert_allclose(between[i], expected)
        np.testing.assert_allclose(
            across[i], np.einsum("arg,rg->a", predicted[:, rows], truth[rows])
        )
        assert own[i] == pytest.approx((truth[rows] ** 2).sum())


def test_moments_give_the_squared_error_of_any_weights():
    truth, predicted, unit = problem(1, n_units=7)
    between, across, own = (part.sum(axis=0) for part in moments_of(truth, predicted, unit))
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    expected = ((truth - np.tensordot(weights, predicted, 1)) ** 2).sum()
    assert weights @ between @ weights - 2 * weights @ across + own == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_the_solver_solves_the_quadratic_program(seed, noise):
    """Up to the ridge, a ten-thousandth of the mean diagonal."""
    between, across, _ = moments_of(*problem(seed, n_units=6, n_members=5, noise=noise))
    gram, goal = between.sum(axis=0), across.sum(axis=0)
    ridged = gram + 1e-4 * np.diag(gram).mean() * np.eye(5)
    found = _solve(gram, goal)
    np.testing.assert_allclose(found, program(ridged, goal), atol=1e-5)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n_units", [1, 2, 30])
def test_weights_lie_on_the_simplex(seed, n_units):
    between, across, _ = moments_of(*problem(seed, n_units, noise=2.0))
    weights = stack_weights(between, across, np.full(4, 0.25), seed=seed)
    assert weights.sum() == pytest.approx(1)
    assert ((weights == 0) | (weights > 9e-4)).all()


def resolved(between, across, prior, n=50):
    """Return solutions of the program on bootstraps of the units, `(n, n_members)`."""
    rng = np.random.default_rng(99)
    drawn = rng.integers(0, len(across), (n, len(across)))
    return np.array([program(*with_prior(between[i], across[i], prior)) for i in drawn])


@pytest.mark.parametrize("mixture", [(0.5, 0.3, 0.2, 0.0), (0.25, 0.25, 0.25, 0.25)])
def test_many_units_give_the_weights_of_least_squares(mixture):
    """The mean over bootstraps, so within its error that of other bootstraps, solved by scipy.

    Both are means of 50, so their difference has twice the variance of one; 4 standard errors,
    and the ridge's part, 1e-4 relative to eigenvalues of 0.6 or more.
    """
    between, across, _ = moments_of(*problem(3, n_units=150, noise=2.0, mixture=mixture))
    prior = np.array([0.0, 0.0, 0.0, 1.0])
    found = stack_weights(between, across, prior)
    solutions = resolved(between, across, prior)
    error = solutions.std(axis=0) * np.sqrt(2 / len(solutions))
    np.testing.assert_array_less(np.abs(found - solutions.mean(axis=0)), 4 * error + 1e-3)
    expected = program(*with_prior(between, across, prior))
    np.testing.assert_array_less(np.abs(found - expected), 2 * solutions.std(axis=0) + 1e-3)


@pytest.mark.parametrize("n_units", [1, 5, 40, 1000])
def test_the_prior_counts_as_so_many_units(n_units):
    """Of members that have nothing in common, and units that are all alike."""
    predicted, prior = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.1, 0.8])
    between, across = np.tile(np.eye(3), (n_units, 1, 1)), np.tile(predicted, (n_units, 1))
    expected = (n_units * predicted + N_PRIOR * prior) / (n_units + N_PRIOR)
    np.testing.assert_allclose(stack_weights(between, across, prior), expected, atol=1e-4)


def test_few_units_leave_the_prior_and_many_do_not():
    prior = np.array([1.0, 0.0, 0.0, 0.0])
    away = []
    for n_units in (1, 10, 400):
        between, across, _ = moments_of(*problem(5, n_units, noise=0.1, mixture=(0, 0, 0, 1)))
        away.append(1 - stack_weights(between, across, prior)[0])
    assert away[0] < 0.3
    assert away[0] < away[1] < away[2]
    assert away[2] > 0.9


def test_members_that_are_identical_share():
    truth, predicted, unit = problem(6, n_units=60, n_members=2, mixture=(0.6, 0.4))
    prior = np.full(2, 0.5)
    alone = stack_weights(*moments_of(truth, predicted, unit)[:2], prior)
    doubled = predicted[[0, 1, 1]]
    made = stack_weights(*moments_of(truth, doubled, unit)[:2], np.array([0.5, 0.25, 0.25]))
    assert made[1] == pytest.approx(made[2], abs=1e-6)
    np.testing.assert_allclose([made[0], made[1] + made[2]], alone, atol=1e-3)


def test_a_member_that_only_harms_has_no_weight():
    truth, predicted, unit = problem(7, n_units=80, n_members=2, noise=0.2, mixture=(1, 0))
    predicted[1] = -3 * predicted[0]
    weights = stack_weights(*moments_of(truth, predicted, unit)[:2], np.array([1.0, 0.0]))
    np.testing.assert_array_equal(weights, [1, 0])


def test_effects_shrink_where_nothing_can_be_said_of_them():
    """A member of noise against one of no change: all is no change."""
    rng = np.random.default_rng(8)
    predicted = np.stack([rng.normal(size=(300, 20)), np.zeros((300, 20))])
    truth = rng.normal(size=(300, 20))
    moments = moments_of(truth, predicted, np.arange(300))[:2]
    weights = stack_weights(*moments, np.array([1.0, 0.0]))
    # Of the units, those of the prior say 1; of 6,000 values there is an error of 1 / sqrt(6000).
    assert weights[0] == pytest.approx(N_PRIOR / (300 + N_PRIOR), abs=4 / np.sqrt(6000))


@pytest.mark.parametrize("scale", [1e-6, 1e5])
def test_units_of_measurement_make_no_difference(scale):
    truth, predicted, unit = problem(9, n_units=20)
    prior = np.full(4, 0.25)
    expected = stack_weights(*moments_of(truth, predicted, unit)[:2], prior)
    made = stack_weights(*moments_of(scale * truth, scale * predicted, unit)[:2], prior)
    np.testing.assert_allclose(made, expected, atol=1e-6)


def test_members_that_all_say_nothing():
    weights = stack_weights(np.zeros((5, 3, 3)), np.zeros((5, 3)), np.array([1.0, 0.0, 0.0]))
    assert weights.sum() == pytest.approx(1)
    assert np.isfinite(weights).all()


def test_one_member_has_all_the_weight():
    between, across, _ = moments_of(*problem(10, n_units=3, n_members=1))
    np.testing.assert_array_equal(stack_weights(between, across, np.ones(1)), [1])


def test_weights_follow_the_seed():
    between, across, _ = moments_of(*problem(11, n_units=12, noise=3.0))
    first, again, other = (
        stack_weights(between, across, np.full(4, 0.25), seed=seed) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_allclose(first, other, atol=0.2)
