from __future__ import annotations

import pytest
import torch

from scvi_perturb.generative import CosineSchedule, LinearSchedule, Schedule, get_schedule
from scvi_perturb.generative.samplers import LOG_SNR_LIMIT, LinearPath

NAMES = ["cosine", "linear", "path"]
INSIDE = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64)


@pytest.fixture(params=NAMES)
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return get_schedule(request.param)


def test_names():
    assert isinstance(get_schedule("cosine"), CosineSchedule)
    assert isinstance(get_schedule("linear"), LinearSchedule)
    assert isinstance(get_schedule("path"), LinearPath)
    with pytest.raises(ValueError, match=r"name='sine'.*'cosine', 'linear', 'path'"):
        get_schedule("sine")


def test_protocol(schedule: Schedule):
    assert isinstance(schedule, Schedule)


def test_time_of_log_snr_is_the_inverse(schedule: Schedule):
    torch.testing.assert_close(schedule.time_of_log_snr(schedule.log_snr(INSIDE)), INSIDE)


def test_log_snr_agrees_with_the_scales(schedule: Schedule):
    expected = 2 * torch.log(schedule.alpha(INSIDE) / schedule.sigma(INSIDE))
    torch.testing.assert_close(schedule.log_snr(INSIDE), expected)


def test_log_snr_falls_and_stays_within_the_limit(schedule: Schedule):
    log_snr = schedule.log_snr(torch.linspace(0, 1, 1001, dtype=torch.float64))
    assert (log_snr.diff() <= 0).all()
    assert log_snr.abs().max() <= LOG_SNR_LIMIT + 1e-9
    torch.testing.assert_close(log_snr[0], torch.tensor(LOG_SNR_LIMIT, dtype=torch.float64))


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_variance_is_preserved(name: str):
    schedule = get_schedule(name)
    t = torch.cat([ENDS, INSIDE])
    square = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    torch.testing.assert_close(square, torch.ones_like(t))
    assert (schedule.alpha(ENDS) > 0).all()
    assert (schedule.sigma(ENDS) > 0).all()


def test_path_is_straight():
    path = LinearPath()
    assert path.alpha(ENDS).tolist() == [1, 0]
    assert path.sigma(ENDS).tolist() == [0, 1]


def test_linear_schedule_follows_its_rate():
    # d log alpha / dt = -beta / 2, and beta grows linearly between its ends.
    schedule = LinearSchedule(beta_min=0.2, beta_max=10.0)
    t = INSIDE.clone().requires_grad_()
    (slope,) = torch.autograd.grad(schedule.alpha(t).log().sum(), t)
    beta = -2 * slope
    torch.testing.assert_close(beta.diff(), beta.diff().mean().expand(100))
    assert 0.19 < float(beta[0]) < 0.25
    assert 9.9 < float(beta[-1]) < 10.0


@pytest.mark.parametrize("rates", [(0.0, 20.0), (2.0, 1.0), (-1.0, 1.0)])
def test_linear_schedule_refuses_other_rates(rates: tuple[float, float]):
    with pytest.raises(ValueError, match="beta_min"):
        LinearSchedule(*rates)


def test_float32_keeps_its_dtype_and_is_close(schedule: Schedule):
    t = INSIDE.float()
    assert schedule.sigma(t).dtype == torch.float32
    close = {"rtol": 1e-4, "atol": 1e-4, "check_dtype": False}
    torch.testing.assert_close(schedule.log_snr(t), schedule.log_snr(t.double()), **close)
