"""Noise schedules, and samplers that turn noise into samples with a denoiser."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from scvi_perturb._checks import check_choice, checked
from scvi_perturb.generative.flow import EVALUATIONS_PER_STEP, Solver
from scvi_perturb.registry import Registry, registry

if TYPE_CHECKING:
    from collections.abc import Iterable

#: No schedule reports a log-SNR beyond this: at 15 the noise is 0.06 % of the signal's scale.
LOG_SNR_LIMIT: Final = 15.0


@runtime_checkable
class Schedule(Protocol):
    """Interface of schedules; `t` and the results are tensors of one shape."""

    def alpha(self, t: Tensor) -> Tensor:
        """Return the scale of the data in `x_t`."""
        ...

    def sigma(self, t: Tensor) -> Tensor:
        """Return the scale of the noise in `x_t`."""
        ...

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`, within `LOG_SNR_LIMIT` of zero."""
        ...

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value: the inverse of `log_snr`."""
        ...


@dataclass(frozen=True, slots=True)
class LinearPath:
    """Straight path between data and noise: `alpha = 1 - t`, `sigma = t`, exactly.

    The log-SNR is infinite at the ends and is reported clipped to +-`LOG_SNR_LIMIT`.

    Reference: Lipman et al., Flow matching for generative modeling, 2023.
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Return the scale of the data in `x_t`."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Return the scale of the noise in `x_t`."""
        return t.clone()

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`, clipped to +-`LOG_SNR_LIMIT`."""
        log_snr = 2 * (torch.log1p(-t) - torch.log(t))
        return log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value."""
        return torch.sigmoid(-log_snr / 2)


@checked
@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """Variance-preserving cosine schedule: `alpha = cos a`, `sigma = sin a`.

    The angle `a` runs linearly from just above 0 to just below pi / 2, so that the log-SNR spans
    exactly +-`LOG_SNR_LIMIT` and neither `alpha` nor `sigma` is ever zero.

    References
    ----------
    Nichol and Dhariwal, Improved denoising diffusion probabilistic models, 2021.
    """

    @property
    def _first(self) -> float:
        return math.atan(math.exp(-LOG_SNR_LIMIT / 2))

    @property
    def _rate(self) -> float:
        return math.pi / 2 - 2 * self._first

    def _angle(self, t: Tensor) -> Tensor:
        return self._first + self._rate * t

    def alpha(self, t: Tensor) -> Tensor:
        """Return the scale of the data in `x_t`."""
        return torch.cos(self._angle(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Return the scale of the noise in `x_t`."""
        return torch.sin(self._angle(t))

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`."""
        return -2 * torch.log(torch.tan(self._angle(t)))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value."""
        return (torch.atan(torch.exp(-log_snr / 2)) - self._first) / self._rate


@checked
@dataclass(frozen=True, slots=True)
class LinearSchedule:
    """Variance-preserving schedule whose rate `beta(t)` grows linearly.

    `log alpha(t) = -(beta_max - beta_min) s^2 / 4 - beta_min s / 2`, where `s` runs linearly from
    the moment the log-SNR is `LOG_SNR_LIMIT` to 1.

    Parameters
    ----------
    beta_min, beta_max
        Rate of noising at the data and at the noise end, `0 < beta_min < beta_max`.

    Raises
    ------
    ValueError
        If the rates are not positive and increasing.

    References
    ----------
    Song et al., Score-based generative modeling through stochastic differential equations, 2021.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        """Check the rates."""
        if not 0 < self.beta_min < self.beta_max:
            msg = (
                f"beta_min={self.beta_min} and beta_max={self.beta_max} are not rates of a linear "
                "schedule; expected 0 < beta_min < beta_max, for example 0.1 and 20."
            )
            raise ValueError(msg)

    @property
    def _first(self) -> float:
        return self._clock(0.5 * math.log1p(math.exp(-LOG_SNR_LIMIT)))

    def _clock(self, decay: float) -> float:
        """Return the `s` at which `-log alpha` equals `decay`."""
        root = math.sqrt(self.beta_min**2 / 4 + (self.beta_max - self.beta_min) * decay)
        return 2 * decay / (self.beta_min / 2 + root)

    def _log_alpha(self, t: Tensor) -> Tensor:
        s = self._first + (1 - self._first) * t
        return -(self.beta_max - self.beta_min) / 4 * s**2 - self.beta_min / 2 * s

    def alpha(self, t: Tensor) -> Tensor:
        """Return the scale of the data in `x_t`."""
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Return the scale of the noise in `x_t`."""
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`."""
        decay = 2 * self._log_alpha(t)
        return decay - torch.log(-torch.expm1(decay))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value."""
        decay = 0.5 * softplus(-log_snr)
        root = torch.sqrt(self.beta_min**2 / 4 + (self.beta_max - self.beta_min) * decay)
        return (2 * decay / (self.beta_min / 2 + root) - self._first) / (1 - self._first)


ScheduleName = Literal["cosine", "linear", "path"]

_SCHEDULES: Final[dict[str, type[CosineSchedule | LinearSchedule | LinearPath]]] = {
    "cosine": CosineSchedule,
    "linear": LinearSchedule,
    "path": LinearPath,
}


@checked
def get_schedule(name: ScheduleName) -> Schedule:
    """Return the schedule of this name with its default parameters.

    `name`: "cosine", "linear" (both variance-preserving) or "path" (straight line). Raises
    `ValueError`: If the name is not known.
    """
    check_choice("schedule", name, _SCHEDULES)
    return _SCHEDULES[name]()


#: Maps `(x_t, t)` with one time for all cells to the expected data `x_0`.
Denoiser = Callable[[Tensor, float], Tensor]


class Sampler(Protocol):
    """Signature that all samplers share.

    Parameters
    ----------
    predict_x0
        Expected data at `(x_t, t)`; called `n_evaluations` times.
    x_1
        Standard normal noise `(n_cells, n_dim)`.
    schedule
        Schedule that the denoiser was trained with.
    n_evaluations
        Number of network calls.
    generator
        Source of further noise; deterministic samplers ignore it.

    Returns
    -------
    Samples of the data, shaped as `x_1`.

    Raises
    ------
    ValueError
        If `n_evaluations` is not positive.
    """

    def __call__(
        self,
        predict_x0: Denoiser,
        x_1: Tensor,
        schedule: Schedule,
        *,
        n_evaluations: int = 20,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return samples of the data with the shape of `x_1`."""
        ...


def check_evaluations(n_evaluations: int) -> None:
    """Raise `ValueError` if there would be no network evaluation."""
    if n_evaluations < 1:
        msg = f"n_evaluations={n_evaluations}: a sampler needs at least one network evaluation."
        raise ValueError(msg)


@dataclass(frozen=True, slots=True)
class Point:
    """A time of the reverse process, with its scales."""

    t: float
    log_snr: float
    alpha: float
    sigma: float

    @property
    def norm(self) -> float:
        """Return the scale of `x_t` for data of variance 1."""
        return math.hypot(self.alpha, self.sigma)

    @property
    def angle(self) -> float:
        """Return the angle that runs from 0 (data) to pi / 2 (noise)."""
        return math.atan2(self.sigma, self.alpha)


def _grid(schedule: Schedule, n_steps: int) -> list[Point]:
    """Return the `n_steps + 1` points from noise to data.

    The log-SNR is `3 logit(u)` at even `u`: dense about 0, where the denoised data change most, and
    wider towards both ends. It is the same for every schedule, so schedules differ in training
    only. The factor was chosen on Gaussians of standard deviation 0.05-1.5 and a 32-d mixture.
    """
    low, high = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    ends = torch.sigmoid(torch.tensor([low, high], dtype=torch.float64) / 3).tolist()
    log_snr = 3 * torch.logit(torch.linspace(ends[0], ends[1], n_steps + 1, dtype=torch.float64))
    t = schedule.time_of_log_snr(log_snr)
    t[0], t[-1] = 1.0, 0.0
    columns = torch.stack([t, log_snr, schedule.alpha(t), schedule.sigma(t)], dim=1)
    return [Point(*row) for row in columns.tolist()]


def _ratio(now: Point, then: Point) -> float:
    """Return `e^-h`: the ratio of `alpha / sigma` now to that of the (less noisy) point `then`."""
    return (now.alpha * then.sigma) / (now.sigma * then.alpha)


def _step(x: Tensor, x0: Tensor, now: Point, then: Point) -> Tensor:
    """Return `x` at `then`, exact while the denoised `x0` stays the same."""
    keep = then.sigma / now.sigma
    return keep * x + (then.alpha * (1 - _ratio(now, then))) * x0


def ddim(
    predict_x0: Denoiser,
    x_1: Tensor,
    schedule: Schedule,
    *,
    n_evaluations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Deterministic first-order sampler; loses spread below about 50 evaluations.

    Arguments as for `Sampler`, as those of all samplers here.

    Reference: Song, Meng and Ermon, Denoising diffusion implicit models, 2021.
    """
    del generator
    check_evaluations(n_evaluations)
    points = _grid(schedule, n_evaluations)
    x = x_1
    for now, then in pairwise(points):
        x = _step(x, predict_x0(x, now.t), now, then)
    return x


def heun(
    predict_x0: Denoiser,
    x_1: Tensor,
    schedule: Schedule,
    *,
    n_evaluations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Second-order sampler: Heun's method in the angle `atan(sigma / alpha)`.

    Where `x_t` is scaled to `cos(a) x_0 + sin(a) eps`, its derivative in the angle `a` is the
    velocity `cos(a) eps - sin(a) x_0`; a step averages the velocities of its two ends. Two
    evaluations a step, but one in the last step and, if `n_evaluations` is even, in the first.

    Reference: Karras et al., Elucidating the design space of diffusion-based generative models,
    2022; Salimans and Ho, Progressive distillation for fast sampling of diffusion models, 2022.
    """
    del generator
    check_evaluations(n_evaluations)
    n_steps = n_evaluations // 2 + 1
    points = _grid(schedule, n_steps)
    x = x_1
    for i, (now, then) in enumerate(pairwise(points)):
        x0 = predict_x0(x, now.t)
        if i == n_steps - 1 or (i == 0 and n_evaluations % 2 == 0):
            x = _step(x, x0, now, then)
            continue
        slope = _velocity(x, x0, now)
        width = then.angle - now.angle
        guess = (x / now.norm + width * slope) * then.norm
        slope = slope + _velocity(guess, predict_x0(guess, then.t), then)
        x = (x / now.norm + (width / 2) * slope) * then.norm
    return x


def _velocity(x: Tensor, x0: Tensor, at: Point) -> Tensor:
    """Return the derivative of the scaled `x` in the angle."""
    return (at.alpha / at.norm * x - at.norm * x0) / at.sigma


def dpm_solver_2m(
    predict_x0: Denoiser,
    x_1: Tensor,
    schedule: Schedule,
    *,
    n_evaluations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Second-order multi-step sampler, DPM-Solver++(2M): one evaluation per step.

    The denoised data are extrapolated in the log-SNR from the last two steps, except in the first
    and the last step.

    Reference: Lu et al., DPM-Solver++: fast solver for guided sampling of diffusion models, 2022.
    """
    del generator
    check_evaluations(n_evaluations)
    points = _grid(schedule, n_evaluations)
    x, previous, last_width = x_1, None, 0.0
    for i, (now, then) in enumerate(pairwise(points)):
        x0 = predict_x0(x, now.t)
        width = then.log_snr - now.log_snr
        if previous is None or i == n_evaluations - 1:
            estimate = x0
        else:
            estimate = torch.lerp(previous, x0, 1 + width / (2 * last_width))
        x = _step(x, estimate, now, then)
        previous, last_width = x0, width
    return x


def euler_maruyama(
    predict_x0: Denoiser,
    x_1: Tensor,
    schedule: Schedule,
    *,
    n_evaluations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Stochastic first-order sampler of the reverse equation, linear part exact.

    With the variance-preserving schedules this is ancestral sampling (DDPM). Needs hundreds of
    evaluations; `generator` gives the noise.

    Reference: Ho, Jain and Abbeel, Denoising diffusion probabilistic models, 2020; Song et al.,
    Score-based generative modeling through stochastic differential equations, 2021.
    """
    check_evaluations(n_evaluations)
    points = _grid(schedule, n_evaluations)
    x = x_1
    for now, then in pairwise(points):
        kept = _ratio(now, then)
        mean = (then.sigma / now.sigma * kept) * x
        mean = mean + (then.alpha * (1 - kept**2)) * predict_x0(x, now.t)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = mean + (then.sigma * math.sqrt(1 - kept**2)) * noise
    return x


#: Those of this package, and names under which other packages register theirs.
SamplerName = Literal["heun", "dpm++2m", "ddim", "euler-maruyama", "euler", "rk4"] | str

#: Solvers of flows, by name.
SOLVERS: Final[tuple[Solver, ...]] = tuple(EVALUATIONS_PER_STEP)

#: Samplers of diffusions by name, those of other packages included.
SAMPLERS: Final[Registry[Sampler]] = registry("samplers")


@checked
@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """How to sample: method, number of network evaluations, strength of guidance.

    Parameters
    ----------
    method
        Name of the sampler: of a diffusion one of `SAMPLERS`, of a flow one of `SOLVERS`.
    n_evaluations
        Number of evaluations of the network; with guidance each costs two network calls.
    guidance_scale
        1 is no guidance; above 1 the condition is overstated and spread shrinks.

    Raises
    ------
    ValueError
        If the method is not known or a number is out of range.
    """

    method: SamplerName = "heun"
    n_evaluations: int = 20
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("method", self.method, tuple(dict.fromkeys((*SAMPLERS, *SOLVERS))))
        check_evaluations(self.n_evaluations)
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            msg = (
                f"guidance_scale={self.guidance_scale} is not a guidance scale; expected a finite "
                "number >= 0 (1 means no guidance)."
            )
            raise ValueError(msg)

    @classmethod
    def of(
        cls, sampler: SamplerName | SamplerConfig, methods: Iterable[str] = tuple(SAMPLERS)
    ) -> SamplerConfig:
        """Return a configuration as it is, or the defaults of a method by its name.

        Raises `ValueError`: If the method is none of those that are to be had.
        """
        check_choice("sampler", getattr(sampler, "method", sampler), methods)
        return sampler if isinstance(sampler, SamplerConfig) else cls(method=sampler)


def solver_and_steps(sampler: SamplerConfig) -> tuple[Solver, int]:
    """Return the solver of a flow, and how many whole steps its evaluations allow, at least one.

    Raises `ValueError`: If the method is one of diffusions.
    """
    for solver, cost in EVALUATIONS_PER_STEP.items():
        if solver == sampler.method:
            return solver, max(1, sampler.n_evaluations // cost)
    msg = f"sampler={sampler.method!r} is not of flows; choose one of {SOLVERS}."
    raise ValueError(msg)
