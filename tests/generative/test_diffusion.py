from __future__ import annotations

import pytest
import torch
from torch import Tensor

from scvi_perturb.generative import add_noise, denoising_loss, get_schedule
from scvi_perturb.generative.diffusion import Parameterisation, min_snr_weight, to_x0

KINDS: list[Parameterisation] = ["v", "eps", "x0"]
SCHEDULES = ["cosine", "linear", "path"]


def _draw(n: int = 64, n_dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    x0 = torch.randn(n, n_dim, generator=random, dtype=torch.float64)
    noise = torch.randn(n, n_dim, generator=random, dtype=torch.float64)
    return x0, noise, torch.linspace(0.01, 0.99, n, dtype=torch.float64)


def _in_terms_of(kind, x0, x_t, t, schedule):
    """Return what a network that knows `x0` would predict, by the definitions."""
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    noise = (x_t - alpha * x0) / sigma
    return {"x0": x0, "eps": noise, "v": alpha * noise - sigma * x0}[kind]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_predicted_data_agree_with_the_definitions(name, kind):
    schedule = get_schedule(name)
    x0, noise, t = _draw()
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    truth = {"x0": x0, "eps": noise, "v": alpha * noise - sigma * x0}
    x_t = add_noise(x0, noise, t, schedule)
    torch.testing.assert_close(x_t, alpha * x0 + sigma * noise)
    torch.testing.assert_close(to_x0(truth[kind], x_t, t, schedule, kind), x0)


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
def test_predicted_data_are_finite_at_both_ends(name, kind):
    schedule = get_schedule(name)
    x0, noise, _ = _draw(2)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert torch.isfinite(to_x0(noise, x0, ends, schedule, kind)).all()


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", KINDS)
def test_min_snr_loss_does_not_depend_on_the_parameterisation(name, kind):
    schedule = get_schedule(name)
    x0, noise, t = _draw()
    x_t = add_noise(x0, noise, t, schedule)
    guess = 0.3 * x_t
    options = {"schedule": schedule, "gamma": 5.0}
    expected = (guess - x0).square().mean(1) * torch.exp(schedule.log_snr(t)).clamp_max(5)
    prediction = _in_terms_of(kind, guess, x_t, t, schedule)
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


def test_unknown_parameterisation_is_named():
    x0, noise, t = _draw(2)
    with pytest.raises(ValueError, match=r"parameterisation='score'.*'eps', 'v', 'x0'"):
        to_x0(x0, noise, t, get_schedule("cosine"), "score")
