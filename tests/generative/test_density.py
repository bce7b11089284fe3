"""Densities along flows: Gaussians whose flow is known, exact and estimated traces."""

from __future__ import annotations

import math

import pytest
import torch

from scvi_perturb.generative import (
    exact_divergence,
    flow_log_density,
    hutchinson_divergence,
    integrate,
    rademacher,
)

N_DIM = 3
MEAN = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
ROOT = torch.tensor([[1.0, 0, 0], [0.6, 0.5, 0], [-0.3, 0.2, 1.6]], dtype=torch.float64)


def gaussian():
    return torch.distributions.MultivariateNormal(MEAN, scale_tril=ROOT)


def field(t, x):
    """Velocity of the straight path between noise and the Gaussian: `E[x_1 - eps | x_t]`."""
    covariance = ROOT @ ROOT.T
    eye = torch.eye(N_DIM, dtype=x.dtype)
    spread = t**2 * covariance + (1 - t) ** 2 * eye
    gain = torch.linalg.solve(spread, t * covariance - (1 - t) * eye).T
    return MEAN + (x - t * MEAN) @ gain.T


def points(n=50, seed=0):
    torch.manual_seed(seed)
    return gaussian().sample((n,))


def test_density_of_a_gaussian():
    x = points()
    found = flow_log_density(field, x, n_steps=50, solver="heun")
    error = (found.log_density - gaussian().log_prob(x)).abs().max() / N_DIM
    assert float(error) < 1e-3
    found = flow_log_density(field, x, n_steps=50, solver="rk4")
    error = (found.log_density - gaussian().log_prob(x)).abs().max() / N_DIM
    assert float(error) < 1e-4
    assert float(found.standard_error.max()) == 0


def test_step_halving_tells_the_error():
    x = points()
    found = flow_log_density(field, x, n_steps=8, solver="heun")
    error = (found.log_density - gaussian().log_prob(x)).abs()
    # Of order 2, half the steps have four times the error: the difference is thrice the error.
    ratio = found.step_error.mean() / error.mean()
    assert 1.5 < float(ratio) < 6


def test_the_source_is_standard_normal():
    x = points(4000)
    found = flow_log_density(field, x, n_steps=20)
    se = 1 / math.sqrt(4000)
    assert float(found.source.mean(0).abs().max()) < 4 * se
    assert float((found.source.T.cov() - torch.eye(N_DIM)).abs().max()) < 4 * math.sqrt(2) * se


def test_the_transport_map_of_gaussians():
    """From noise, the flow of the straight path is the optimal map where covariances commute."""
    scale = torch.tensor([0.5, 1.0, 3.0], dtype=torch.float64)

    def diagonal(t, x):
        spread = t**2 * scale**2 + (1 - t) ** 2
        return MEAN + (x - t * MEAN) * (t * scale**2 - (1 - t)) / spread

    start = torch.randn(20, N_DIM, dtype=torch.float64)
    (end,) = integrate(diagonal, start, n_steps=100, solver="rk4")
    torch.testing.assert_close(end, MEAN + scale * start, atol=1e-6, rtol=0)


def nonlinear(t, x):
    return torch.tanh(x @ ROOT + t) + x[:, :1] * x


def test_exact_divergence_is_the_trace_of_the_jacobian():
    x = points(7)
    velocity, divergence = exact_divergence(nonlinear, 0.3, x)
    torch.testing.assert_close(velocity, nonlinear(0.3, x))
    for row, found in zip(x, divergence, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda point: nonlinear(0.3, point[None])[0], row
        )
        torch.testing.assert_close(found, jacobian.trace())


def test_estimated_divergence_is_unbiased():
    x = points(5)
    n = 4000
    probes = rademacher(n, x, torch.Generator().manual_seed(0))
    assert set(probes.unique().tolist()) == {-1.0, 1.0}
    velocity, estimates = hutchinson_divergence(probes)(nonlinear, 0.3, x)
    torch.testing.assert_close(velocity, nonlinear(0.3, x))
    _, truth = exact_divergence(nonlinear, 0.3, x)
    error = (estimates.mean(0) - truth) / (estimates.std(0) / math.sqrt(n))
    assert float(error.abs().max()) < 4


def test_estimated_density_says_its_error():
    x = points(200)
    random = torch.Generator().manual_seed(1)
    found = flow_log_density(field, x, n_steps=20, n_probes=20, generator=random)
    error = (found.log_density - gaussian().log_prob(x)) / found.standard_error
    assert (found.standard_error > 0).all()
    # Student's t of 19 degrees: standard deviation 1.06.
    assert 0.8 < float(error.std()) < 1.35


def test_one_probe_is_refused():
    with pytest.raises(ValueError, match="n_probes=1"):
        flow_log_density(field, points(2), n_probes=1)
