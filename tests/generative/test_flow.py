"""Flow matching: lines, times, the loss, and four ways to say the same."""

from __future__ import annotations

import math

import pytest
import torch

from scvi_perturb.generative import (
    LinearPath,
    flow_loss,
    flow_quantities,
    flow_times,
    line,
    to_eps,
    to_x0,
)

NAMES = ["velocity", "score", "data", "noise"]


def draws(n=6, seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("given", NAMES)
def test_quantities_agree(given, t):
    data, noise = draws(seed=1), draws(seed=2)
    x_t = line(noise, data, torch.full((6,), t, dtype=torch.float64))
    truth = {"velocity": data - noise, "score": -noise / (1 - t), "data": data, "noise": noise}
    found = flow_quantities(x_t, t, **{given: truth[given]})._asdict()
    for name in NAMES:
        torch.testing.assert_close(found[name], truth[name], atol=1e-10, rtol=0)


@pytest.mark.parametrize("t", [0.2, 0.8])
def test_quantities_agree_with_the_diffusion_of_the_straight_path(t):
    x_t, noise = draws(seed=1), draws(seed=2)
    found = flow_quantities(x_t, t, noise=noise)
    time = torch.tensor(1 - t, dtype=torch.float64)
    torch.testing.assert_close(found.data, to_x0(noise, x_t, time, LinearPath(), "eps"))
    torch.testing.assert_close(found.noise, to_eps(found.data, x_t, time, LinearPath(), "x0"))


def test_the_score_of_a_gaussian():
    t, spread = 0.6, 2.0
    x_t = draws()
    variance = t**2 * spread**2 + (1 - t) ** 2
    data = t * spread**2 / variance * x_t
    found = flow_quantities(x_t, t, data=data)
    torch.testing.assert_close(found.score, -x_t / variance)


def test_quantities_at_the_ends_are_refused():
    with pytest.raises(ValueError, match=r"t=1\.0"):
        flow_quantities(draws(), 1.0, data=draws())
    with pytest.raises(ValueError, match="2 quantities"):
        flow_quantities(draws(), 0.5, data=draws(), noise=draws())


def test_the_loss_is_least_at_the_displacement():
    source, data = draws(seed=1), draws(seed=2)
    assert float(flow_loss(data - source, source, data).abs().max()) < 1e-12
    off = flow_loss(data - source + 0.5, source, data)
    torch.testing.assert_close(off, torch.full((6,), 0.25, dtype=off.dtype), atol=1e-6, rtol=0)


@pytest.mark.parametrize("law", ["uniform", "logit-normal"])
def test_times_follow_their_law(law):
    n = 20_000
    times = flow_times(n, law, generator=torch.Generator().manual_seed(0))
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
        flow_times(3, "cosine")


def test_targets_agree_with_the_reference_implementation():
    cfm = pytest.importorskip("torchcfm.conditional_flow_matching")
    matcher = cfm.ConditionalFlowMatcher(sigma=0.0)
    source, data = draws(seed=1), draws(seed=2)
    t, x_t, velocity = matcher.sample_location_and_conditional_flow(source, data)
    torch.testing.assert_close(line(source, data, t.double()), x_t)
    assert float(flow_loss(velocity, source, data).abs().max()) < 1e-12


def test_solver_agrees_with_the_schedulers_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    from scvi_perturb.generative import integrate

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
