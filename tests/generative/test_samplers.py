from __future__ import annotations

import math

import pytest
import torch

from scvi_perturb.generative import SAMPLERS, SamplerConfig, get_schedule
from tests.generative._mixture import Mixture, energy_distance, gaussian

SCHEDULES = ["cosine", "linear", "path"]
DETERMINISTIC = ["heun", "dpm++2m", "ddim"]
MIXTURE = Mixture.random()


def _noise(n: int, n_dim: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(n, n_dim, generator=random, dtype=torch.float64)


@pytest.mark.parametrize("method", SAMPLERS)
@pytest.mark.parametrize("n_evaluations", [1, 2, 3, 4, 9, 10, 33, 100])
def test_the_number_of_evaluations_is_exact(method, n_evaluations):
    schedule = get_schedule("cosine")
    predict = gaussian(0.5, n_dim=2).denoiser(schedule)
    times = []

    def counted(x_t, t):
        times.append(t)
        return predict(x_t, t)

    x = SAMPLERS[method](counted, _noise(3, 2), schedule, n_evaluations=n_evaluations)
    assert len(times) == n_evaluations
    assert times[0] == 1.0
    assert min(times) > 0
    assert x.shape == (3, 2)
    assert torch.isfinite(x).all()


def _relative_error(method: str, name: str, n_evaluations: int, variance: float) -> float:
    """Error of the standard deviation for centred normal data, whose flow is linear."""
    schedule = get_schedule(name)
    predict = gaussian(variance).denoiser(schedule)
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    spread = torch.sqrt(variance * schedule.alpha(ends) ** 2 + schedule.sigma(ends) ** 2)
    start = torch.ones(1, 1, dtype=torch.float64)
    end = SAMPLERS[method](predict, start, schedule, n_evaluations=n_evaluations)
    return abs(float(end) / float(spread[0] / spread[1]) - 1)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("method", "order"), [("heun", 2), ("dpm++2m", 2), ("ddim", 1)])
@pytest.mark.parametrize("variance", [0.25, 2.0])
def test_order_of_convergence(method, order, name, variance):
    coarse = _relative_error(method, name, 161, variance)
    fine = _relative_error(method, name, 641, variance)
    assert math.log(coarse / fine, 4) == pytest.approx(order, abs=0.2)


@pytest.mark.parametrize(("method", "limit"), [("heun", 0.04), ("dpm++2m", 0.05)])
@pytest.mark.parametrize("deviation", [0.1, 0.2, 0.5, 1.0, 1.5])
def test_twenty_evaluations_keep_the_spread_of_normal_data(method, limit, deviation):
    assert _relative_error(method, "cosine", 20, deviation**2) < limit


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    ("method", "n_evaluations", "variance"),
    [
        ("heun", 20, 0.965),
        ("dpm++2m", 10, 0.977),
        ("dpm++2m", 20, 0.99),
        ("ddim", 50, 0.95),
        ("euler-maruyama", 100, 0.96),
    ],
)
def test_mixture_in_32_dimensions(name, method, n_evaluations, variance):
    n = 1500
    schedule = get_schedule(name)
    x = SAMPLERS[method](
        MIXTURE.denoiser(schedule),
        _noise(n, 32, seed=2),
        schedule,
        n_evaluations=n_evaluations,
        generator=torch.Generator().manual_seed(3),
    )
    # Two samples of the truth have an energy distance of 0.000 +- 0.002 and a variance ratio of
    # 1.00 +- 0.01; three of these are allowed, and 0.001 for the method.
    assert energy_distance(x, MIXTURE.sample(n, seed=1)) < 0.007
    ratio = float(x.var(0).sum() / torch.trace(MIXTURE.covariance()))
    assert ratio == pytest.approx(variance, abs=0.03)


def test_first_order_samplers_with_few_evaluations_lose_spread():
    # Why `ddim` is not the default: at 20 evaluations a tenth of the variance is missing.
    schedule = get_schedule("cosine")
    x = SAMPLERS["ddim"](MIXTURE.denoiser(schedule), _noise(1500, 32), schedule, n_evaluations=20)
    assert float(x.var(0).sum() / torch.trace(MIXTURE.covariance())) < 0.93


@pytest.mark.parametrize("method", DETERMINISTIC)
def test_schedules_share_one_flow(method):
    # With the exact denoiser, the flow from noise to data is the same for every schedule.
    x_1 = _noise(20, 32)
    cosine, path = (
        SAMPLERS[method](MIXTURE.denoiser(s), x_1, s, n_evaluations=40)
        for s in map(get_schedule, ["cosine", "path"])
    )
    torch.testing.assert_close(cosine, path, rtol=0, atol=0.02)


def test_moments_of_the_stochastic_sampler():
    schedule = get_schedule("cosine")
    n = 20_000
    x = SAMPLERS["euler-maruyama"](
        gaussian(0.25, mean=1.0).denoiser(schedule),
        _noise(n, 1),
        schedule,
        n_evaluations=300,
        generator=torch.Generator().manual_seed(0),
    )
    # Sampling error of the mean is 0.5 / sqrt(n), of the deviation 0.5 / sqrt(2 n); the method's
    # own is below 1 % at 300 evaluations.
    assert float(x.mean()) == pytest.approx(1.0, abs=5 * 0.5 / n**0.5 + 0.01)
    assert float(x.std()) == pytest.approx(0.5, abs=5 * 0.5 / (2 * n) ** 0.5 + 0.005)


def test_randomness_comes_from_the_generator_alone():
    schedule = get_schedule("cosine")
    predict, x_1 = gaussian(0.5).denoiser(schedule), _noise(5, 1)
    state = torch.get_rng_state()
    first, again, other = (
        SAMPLERS["euler-maruyama"](
            predict, x_1, schedule, n_evaluations=9, generator=torch.Generator().manual_seed(seed)
        )
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", SAMPLERS)
def test_float32_is_kept(method):
    schedule = get_schedule("cosine")
    x = SAMPLERS[method](lambda x_t, _: 0.5 * x_t, _noise(3, 2).float(), schedule)
    assert x.dtype == torch.float32


@pytest.mark.parametrize("method", SAMPLERS)
def test_no_evaluation_is_refused(method):
    with pytest.raises(ValueError, match="n_evaluations=0"):
        SAMPLERS[method](lambda x, _: x, _noise(1, 1), get_schedule("cosine"), n_evaluations=0)


def test_config():
    config = SamplerConfig()
    assert config.method in SAMPLERS
    assert config.n_evaluations == 20
    assert config.guidance_scale == 1
    with pytest.raises(ValueError, match=r"method='ode'.*'ddim', 'dpm\+\+2m'"):
        SamplerConfig(method="ode")
    with pytest.raises(ValueError, match="n_evaluations=0"):
        SamplerConfig(n_evaluations=0)
    with pytest.raises(ValueError, match="guidance_scale=-1"):
        SamplerConfig(guidance_scale=-1)
