from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_perturb.generative._gamma import (
    digamma_excess,
    log_rising,
    log_rising_slope,
    stirling_remainder,
)

THETA = np.logspace(-4, 8, 121)
COUNTS = [1, 2, 3, 5, 10, 40, 300]


def _tensors(count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    theta = torch.tensor(THETA, dtype=dtype)
    return torch.full_like(theta, count), theta


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_rising(count, dtype):
    # lgamma(x + theta) - lgamma(theta) - x log(theta) = sum over k < x of log(1 + k / theta).
    x, theta = _tensors(count, dtype)
    exact = theta.double().numpy()
    expected = np.log1p(np.arange(count)[:, None] / exact).sum(0)
    value = log_rising(x, theta, stirling_remainder(theta)).double().numpy()
    if dtype == torch.float32:
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6 * count)
    else:  # evaluated as written: digits are lost as theta grows
        np.testing.assert_allclose(value[:60], expected[:60], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_rising_slope(count, dtype):
    # digamma(x + theta) - digamma(theta) = sum over k < x of 1 / (theta + k).
    x, theta = _tensors(count, dtype)
    exact = theta.double().numpy()
    expected = (1 / (np.arange(count)[:, None] + exact)).sum(0)
    value = log_rising_slope(x, theta, digamma_excess(theta)).double().numpy()
    # Parameters are log(theta), so the error that matters is that of theta times the slope.
    atol = 1e-6 if dtype == torch.float32 else 1e-7
    np.testing.assert_allclose(value * exact, expected * exact, rtol=2e-6, atol=atol)


def test_slope_is_the_derivative():
    x = torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    theta = torch.tensor([0.3, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    rising = log_rising(x, theta, stirling_remainder(theta)) + x * torch.log(theta)
    (slope,) = torch.autograd.grad(rising.sum(), theta)
    with torch.no_grad():
        torch.testing.assert_close(log_rising_slope(x, theta, digamma_excess(theta)), slope)
