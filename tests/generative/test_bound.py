from __future__ import annotations

import pytest
import torch

from scvi_perturb.generative import get_schedule, vdm_bound
from tests.generative._mixture import Mixture, gaussian

SCHEDULES = ["cosine", "linear", "path"]


def _bounds(mixture, x0, schedule, n_times=32, n_repeats=24):
    predict = mixture.denoiser(schedule)
    seeds = (torch.Generator().manual_seed(i) for i in range(n_repeats))
    return torch.stack(
        [vdm_bound(x0, predict, schedule, n_times=n_times, generator=g) for g in seeds]
    )


@pytest.mark.parametrize("name", SCHEDULES)
def test_bound_of_standard_normal_data_has_no_error(name):
    # The control variate is this denoiser, so even one evaluation is exact but for the ends.
    data = gaussian(1.0, n_dim=3)
    x0 = data.sample(10, seed=0)
    schedule = get_schedule(name)
    bound = vdm_bound(x0, data.denoiser(schedule), schedule, n_times=1)
    torch.testing.assert_close(bound, data.log_prob(x0), rtol=0, atol=1e-3)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("variance", "mean"), [(0.25, 0.0), (2.0, 0.5)])
def test_bound_is_tight_for_the_exact_denoiser(name, variance, mean):
    data = gaussian(variance, mean, n_dim=4)
    x0 = data.sample(20, seed=1)
    bounds = _bounds(data, x0, get_schedule(name))
    error = bounds.mean(0) - data.log_prob(x0)
    deviation = bounds.std(0) / len(bounds) ** 0.5
    assert (error.abs() < 5 * deviation + 1e-3).all()


def test_bound_is_tight_for_a_mixture():
    data = Mixture.random(n_dim=8)
    x0 = data.sample(50, seed=2)
    bounds = _bounds(data, x0, get_schedule("cosine"), n_times=48)
    means = bounds.mean(1)
    error = float(means.mean() - data.log_prob(x0).mean())
    assert abs(error) < 5 * float(means.std()) / len(means) ** 0.5 + 1e-3


def test_bound_of_a_wrong_denoiser_is_lower():
    data, wrong = gaussian(0.25, n_dim=4), gaussian(0.5, n_dim=4)
    x0 = data.sample(50, seed=3)
    bounds = _bounds(wrong, x0, get_schedule("cosine")).mean(1)
    # The bound of a consistent but wrong model is that model's log-density.
    expected = float(wrong.log_prob(x0).mean())
    assert abs(float(bounds.mean()) - expected) < 5 * float(bounds.std()) / len(bounds) ** 0.5
    assert float(bounds.mean()) < float(data.log_prob(x0).mean())


def test_seed_and_dtype():
    data = gaussian(0.5, n_dim=2)
    x0 = data.sample(5, seed=0)
    schedule = get_schedule("cosine")

    def predict(x_t, t):
        return data.denoiser(schedule)(x_t.double(), t).float()

    first, again, other = (
        vdm_bound(x0.float(), predict, schedule, generator=torch.Generator().manual_seed(seed))
        for seed in (0, 0, 1)
    )
    assert first.dtype == torch.float32
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_number_of_evaluations_is_kept():
    calls = []
    data = gaussian(1.0)
    predict = data.denoiser(get_schedule("cosine"))

    def counted(x_t, t):
        calls.append(t)
        return predict(x_t, t)

    vdm_bound(data.sample(2, 0), counted, get_schedule("cosine"), n_times=7)
    assert len(calls) == 7
    assert sorted(calls, reverse=True) == calls
    with pytest.raises(ValueError, match="n_times=0"):
        vdm_bound(data.sample(2, 0), predict, get_schedule("cosine"), n_times=0)
