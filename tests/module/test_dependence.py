"""Dependence between groups of variables: what is known of it, by other formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scvi_perturb.module.causal import hsic, total_correlation


def draws(n, k, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, k, generator=random, dtype=torch.float64)


def centred(points):
    """Return the kernel of points, centred by H = I - 11'/n, of Frobenius norm one."""
    squared = ((points[:, None] - points[None]) ** 2).sum(-1)
    width = np.sort(squared.ravel())[(squared.size - 1) // 2]
    h = np.eye(len(points)) - 1 / len(points)
    kernel = h @ np.exp(-squared / width) @ h
    return kernel / np.linalg.norm(kernel)


def test_criterion_is_that_of_centred_kernels():
    one, two = draws(40, 2), draws(40, 3, seed=1)
    two[:, 0] += one[:, 1].square()
    expected = np.trace(centred(one.numpy()) @ centred(two.numpy()))
    torch.testing.assert_close(hsic(one, two), torch.tensor(expected), rtol=1e-9, atol=1e-12)


def test_independent_groups_are_as_if_shuffled_and_dependent_ones_are_not():
    one, two = draws(200, 2), draws(200, 2, seed=1)
    bent = two + one.square()
    random = torch.Generator().manual_seed(2)
    orders = [torch.randperm(200, generator=random) for _ in range(99)]
    # By exchangeability the largest of a hundred with probability 1 %.
    assert hsic(one, two) <= max(hsic(one, two[order]) for order in orders)
    assert hsic(one, bent) > max(hsic(one, bent[order]) for order in orders)


def test_a_group_determines_itself_wherever_it_lies():
    one, two = draws(60, 3), draws(60, 2, seed=1) + draws(60, 3)[:, :2]
    torch.testing.assert_close(hsic(one, one), torch.ones((), dtype=torch.float64))
    rotation = torch.linalg.qr(draws(3, 3, seed=2))[0]
    moved = 7.0 * one @ rotation + 2.0
    torch.testing.assert_close(hsic(one, moved), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close(hsic(moved, two), hsic(one, two))


def test_three_groups_are_three_pairs():
    one, two, three = (draws(50, 2, seed=i) for i in range(3))
    pairs = hsic(one, two) + hsic(one, three) + hsic(two, three)
    torch.testing.assert_close(hsic(one, two, three), pairs)


def correlated(n, correlation, variance, seed=0):
    """Return posteriors and draws of two groups; the aggregate has variance 1."""
    noise, error = draws(n, 2, seed), draws(n, 2, seed + 1)
    spread = math.sqrt(1 - variance)
    first = noise[:, :1]
    second = correlation * first + math.sqrt(1 - correlation**2) * noise[:, 1:]
    means = [spread * first, spread * second]
    log_variances = [torch.full_like(m, math.log(variance)) for m in means]
    points = [m + math.sqrt(variance) * error[:, i : i + 1] for i, m in enumerate(means)]
    return means, log_variances, points


def log_ratio(points, rho):
    """Return the log-density of a pair of unit normals over that of its parts, `(n,)`."""
    x, y = points[0][:, 0], points[1][:, 0]
    away = (x**2 - 2 * rho * x * y + y**2) / (1 - rho**2) - x**2 - y**2
    return -0.5 * away - 0.5 * math.log(1 - rho**2)


@pytest.mark.parametrize("correlation", [0.0, 0.5, 0.9])
def test_total_correlation_of_a_gaussian_aggregate(correlation):
    n, variance = 1000, 0.3
    means, log_variances, points = correlated(n, correlation, variance)
    rho = correlation * (1 - variance)
    truth = -0.5 * math.log(1 - rho**2)
    found = float(total_correlation(means, log_variances, points, n_total=1))
    each = log_ratio(points, rho)
    error = 4 * float(each.std()) / math.sqrt(n)
    # Each density at a draw contains the kernel around its own mean, which is there by
    # construction: it adds at most this to the logarithm of the density of both.
    own = sum(
        -0.5 * ((p - m).square() / variance + math.log(2 * math.pi * variance))[:, 0]
        for p, m in zip(points, means, strict=True)
    )
    apart = sum(-0.5 * (p.square() + math.log(2 * math.pi))[:, 0] for p in points)
    bias = float(torch.log1p((own - apart - each).exp() / n).mean())
    # And what is left of the error of a mean of kernels, relative to the density.
    kernels = 4 / math.sqrt(n)
    assert truth - error - kernels <= found <= truth + error + kernels + bias


def test_total_correlation_follows_the_correlation():
    found = [
        float(total_correlation(*correlated(300, r, 0.3), n_total=300))
        for r in (0.0, 0.4, 0.7, 0.9, 0.97)
    ]
    assert (np.diff(found) > 0).all()


def test_cells_that_a_batch_stands_for_add_their_logarithm_for_each_further_group():
    means, log_variances, points = correlated(50, 0.5, 0.3)
    three = [[x[0], x[1], x[0] - x[1]] for x in (means, log_variances, points)]
    few, many = (total_correlation(*three, n_total=n) for n in (1, 1000))
    torch.testing.assert_close(many - few, torch.tensor(2 * math.log(1000), dtype=torch.float64))


def test_too_few_points_say_nothing():
    one, two = draws(3, 2), draws(3, 2, seed=1)
    assert hsic(one, two) == 0
    assert total_correlation([one, two], [one, two], [one, two], n_total=10) == 0
    assert hsic(draws(4, 2), draws(4, 2)) > 0


def test_gradients_are_finite_even_of_equal_points():
    one = torch.zeros(6, 2, requires_grad=True)
    two = draws(6, 2).float().requires_grad_()
    (hsic(one, two) + total_correlation([one, two], [two, one], [two, two], n_total=9)).backward()
    assert torch.isfinite(one.grad).all()
    assert torch.isfinite(two.grad).all()
    assert two.grad.abs().max() > 0
