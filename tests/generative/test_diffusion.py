from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from scvi_perturb.generative import (
    Parameterisation,
    add_noise,
    denoising_loss,
    get_schedule,
    guide,
    min_snr_weight,
    to_eps,
    to_score,
    to_velocity,
    to_x0,
)

KINDS: list[Parameterisation] = ["v", "eps", "x0"]
SCHEDULES = ["cosine", "linear", "path"]
CONVERT = {"v": to_velocity, "eps": to_eps, "x0": to_x0}


def _draw(n: int = 64, n_dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, n_dim, generator=random, dtype=torch.float64)
    noise = torch.randn(n, n_dim, generator=random, dtype=torch.float64)
    return x0, noise, torch.linspace(0.01, 0.99, n, dtype=torch.float64)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("given", "wanted"), list(itertools.product(KINDS, KINDS)))
def test_conversions_agree_with_the_definitions(name, given, wanted):
    schedule = get_schedule(name)
    x0, noise, t = _draw()
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    truth = {"x0": x0, "eps": noise, "v": alpha * noise - sigma * x0}
    x_t = add_noise(x0, noise, t, schedule)
    torch.testing.assert_close(x_t, alpha * x0 + sigma * noise)
    torch.testing.assert_close(
        CONVERT[wanted](truth[given], x_t, t, schedule, given), truth[wanted]
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_one_time_for_all_cells(name):
    schedule = get_schedule(name)
    x0, noise, _ = _draw(4)
    one = torch.tensor(0.3, dtype=torch.float64)
    torch.testing.assert_close(
        add_noise(x0, noise, one, schedule), add_noise(x0, noise, one.expand(4), schedule)
    )


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_are_finite_at_both_ends(name, kind):
    schedule = get_schedule(name)
    x0, noise, _ = _draw(2)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    for convert in (to_x0, to_eps, to_velocity, to_score):
        assert torch.isfinite(convert(noise, x0, ends, schedule, kind)).all()


@pytest.mark.parametrize("name", SCHEDULES)
def test_score_is_the_gradient_of_the_log_density(name):
    # Data N(1, 0.5^2): x_t is normal with mean alpha and variance alpha^2 / 4 + sigma^2.
    schedule = get_schedule(name)
    t = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    variance = alpha**2 / 4 + sigma**2
    x_t = torch.tensor([[0.3], [-1.0], [2.0]], dtype=torch.float64)
    best = 1 + alpha / 4 / variance * (x_t - alpha)
    torch.testing.assert_close(to_score(best, x_t, t, schedule, "x0"), -(x_t - alpha) / variance)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_loss_does_not_depend_on_the_parameterisation(name, kind):
    schedule = get_schedule(name)
    x0, noise, t = _draw()
    x_t = add_noise(x0, noise, t, schedule)
    guess = 0.3 * x_t
    options = {"schedule": schedule, "gamma": 5.0}
    expected = (guess - x0).square().mean(1) * torch.exp(schedule.log_snr(t)).clamp_max(5)
    prediction = CONVERT[kind](guess, x_t, t, schedule, "x0")
    loss = denoising_loss(prediction, x0, noise, t, parameterisation=kind, **options)
    torch.testing.assert_close(loss, expected)


def test_min_snr_weights_of_the_paper():
    schedule = get_schedule("cosine")
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    snr = torch.exp(schedule.log_snr(t))
    torch.testing.assert_close(min_snr_weight(t, schedule, "eps"), (5 / snr).clamp_max(1))
    torch.testing.assert_close(min_snr_weight(t, schedule, "v"), snr.clamp_max(5) / (snr + 1))


def test_loss_without_weights_is_the_mean_square():
    schedule = get_schedule("cosine")
    x0, noise, t = _draw()
    loss = denoising_loss(
        noise + 2, x0, noise, t, schedule=schedule, parameterisation="eps", gamma=None
    )
    torch.testing.assert_close(loss, torch.full((64,), 4.0, dtype=torch.float64))


def test_loss_of_a_half_precision_prediction_is_computed_in_float32():
    schedule = get_schedule("cosine")
    x0, noise, t = (a.float() for a in _draw())
    loss = denoising_loss(noise.bfloat16(), x0, noise, t, schedule=schedule)
    assert loss.dtype == torch.float32


def test_guidance():
    conditional, unconditional = torch.tensor([3.0]), torch.tensor([1.0])
    assert guide(conditional, unconditional, 0.0).item() == 1
    assert guide(conditional, unconditional, 1.0).item() == 3
    assert guide(conditional, unconditional, 2.0).item() == 5


@pytest.mark.parametrize("convert", [to_x0, to_eps, to_velocity, to_score])
def test_unknown_parameterisation_is_named(convert):
    x0, noise, t = _draw(2)
    with pytest.raises(ValueError, match=r"parameterisation='score'.*'eps', 'v', 'x0'"):
        convert(x0, noise, t, get_schedule("cosine"), "score")
