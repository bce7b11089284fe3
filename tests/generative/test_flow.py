"""Flows: the loss, solvers by exact cases and other implementations, densities of Gaussians."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scvi_perturb.generative import (
    SOLVERS,
    SamplerConfig,
    flow_log_density,
    integrate,
    integrate_adaptive,
)
from scvi_perturb.generative.flow import (
    exact_divergence,
    flow_loss,
    hutchinson_divergence,
    training_times,
)
from scvi_perturb.generative.samplers import solver_and_steps

# Times and loss ----------------------------------------------------------------------------


def draws(n=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=random, dtype=torch.float64)


def test_the_loss_is_least_at_the_displacement():
    source, data = draws(seed=1), draws(seed=2)
    assert float(flow_loss(data - source, source, data).abs().max()) < 1e-12
    off = flow_loss(data - source + 0.5, source, data)
    torch.testing.assert_close(off, torch.full((6,), 0.25, dtype=off.dtype), atol=1e-6, rtol=0)


@pytest.mark.parametrize("law", ["uniform", "logit-normal"])
def test_times_follow_their_law(law):
    n = 20_000
    times = training_times(n, law, generator=torch.Generator().manual_seed(0))
    assert ((times > 0) & (times < 1)).all()
    if law == "logit-normal":
        times = torch.special.ndtr(torch.logit(times))
    # Stratified: the distance from uniform is at most one stratum.
    even = (torch.arange(n) + 0.5) / n
    assert float((times.sort().values - even).abs().max()) < 2 / n + 1e-5
    assert float(
        torch.corrcoef(torch.stack([times, torch.arange(n).float()]))[0, 1]
    ) < 4 / math.sqrt(n)


def test_an_unknown_law_is_refused():
    with pytest.raises(ValueError, match="law='cosine'"):
        training_times(3, "cosine")


def test_targets_agree_with_the_reference_implementation():
    cfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    matcher = cfm.ConditionalFlowMatcher(sigma=0.0)
    source, data = draws(seed=1), draws(seed=2)
    t, x_t, velocity = matcher.sample_location_and_conditional_flow(source, data)
    torch.testing.assert_close(torch.lerp(source, data, t.double()[:, None]), x_t)
    assert float(flow_loss(velocity, source, data).abs().max()) < 1e-12


def test_solver_agrees_with_the_schedulers_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    n_steps = 10
    scheduler.set_timesteps(sigmas=[1 - i / n_steps for i in range(n_steps)])

    def field(t, x):
        return torch.sin(3 * x) * (1 + t)

    theirs = draws().float()
    for step in scheduler.timesteps:
        # Theirs runs from sigma 1 (noise) to 0, and predicts noise less data.
        t = 1 - float(step) / scheduler.config.num_train_timesteps
        theirs = scheduler.step(-field(t, theirs), step, theirs).prev_sample
    (ours,) = integrate(field, draws().float(), n_steps=n_steps, solver="euler")
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


# Solvers -----------------------------------------------------------------------------------

ORDERS = {"euler": 1, "heun": 2, "rk4": 4}


def spiral(t, x):
    """Turn and shrink at a rate that depends on time."""
    turn = torch.tensor([[-0.5, -2.0], [2.0, -0.5]], dtype=x.dtype)
    return (1 + math.sin(3 * t)) * x @ turn.T


def exact(x, t=1.0):
    """Return the solution of `spiral` from `x` at time 0."""
    clock = t + (1 - math.cos(3 * t)) / 3
    angle = 2 * clock
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=x.dtype
    )
    return math.exp(-0.5 * clock) * x @ turn.T


@pytest.fixture
def start():
    return torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=torch.float64)


@pytest.mark.parametrize("solver", SOLVERS)
def test_error_falls_with_the_order_of_the_solver(start, solver):
    errors = []
    for n_steps in (40, 80):
        (end,) = integrate(spiral, start, n_steps=n_steps, solver=solver)
        errors.append(float((end - exact(start)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[solver], abs=0.2)


def test_the_way_back_is_the_way_forth(start):
    (end,) = integrate(spiral, start, n_steps=400, solver="rk4")
    (back,) = integrate(spiral, end, times=(1.0, 0.0), n_steps=400, solver="rk4")
    assert float((back - start).abs().max()) < 1e-8


def test_states_on_the_way(start):
    times = (0.0, 0.25, 0.7, 1.0)
    path = list(integrate(spiral, start, times=times, n_steps=200, solver="rk4"))
    assert len(path) == 3
    for t, state in zip(times[1:], path, strict=True):
        torch.testing.assert_close(state, exact(start, t), atol=1e-7, rtol=0)


def test_adaptive_steps_agree(start):
    pytest.importorskip("torchdiffeq")
    times = (0.0, 0.4, 1.0)
    found = list(integrate_adaptive(spiral, start, times=times, tolerance=1e-9))
    assert len(found) == 2
    torch.testing.assert_close(found[-1], exact(start), atol=1e-6, rtol=0)
    (back,) = integrate_adaptive(spiral, found[-1], times=(1.0, 0.0), tolerance=1e-9)
    torch.testing.assert_close(back, start, atol=1e-6, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_fixed_steps_agree_with_the_reference_implementation(start, solver):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    theirs = torchdiffeq.odeint(lambda t, x: spiral(float(t), x), start, grid, method=solver)[-1]
    (ours,) = integrate(spiral, start, n_steps=20, solver=solver)
    # Theirs is the 3/8 rule of order 4: alike up to the error of the method.
    torch.testing.assert_close(ours, theirs, atol=1e-12 if solver == "euler" else 2e-5, rtol=0)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 20), ("heun", 10), ("rk4", 5)])
def test_evaluations_pay_for_steps(start, solver, steps):
    calls = []

    def counted(t, x):
        calls.append(t)
        return torch.zeros_like(x)

    assert solver_and_steps(SamplerConfig(solver, 20)) == (solver, steps)
    list(integrate(counted, start, n_steps=steps, solver=solver))
    assert len(calls) == 20
    assert solver_and_steps(SamplerConfig(solver, 1)) == (solver, 1)


def test_what_cannot_be_solved_is_refused(start):
    with pytest.raises(ValueError, match="solver='midpoint'"):
        list(integrate(spiral, start, solver="midpoint"))
    with pytest.raises(ValueError, match="n_steps=0"):
        list(integrate(spiral, start, n_steps=0))
    with pytest.raises(ValueError, match="1 times"):
        list(integrate(spiral, start, times=(0.0,)))


def test_empty_batches_pass():
    (end,) = integrate(spiral, torch.zeros(0, 2, dtype=torch.float64))
    assert np.array_equal(end.shape, (0, 2))


# Densities ---------------------------------------------------------------------------------

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
    estimate = hutchinson_divergence(n, x, torch.Generator().manual_seed(0))
    velocity, estimates = estimate(nonlinear, 0.3, x)
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
