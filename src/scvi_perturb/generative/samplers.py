"""Samplers that turn noise into samples with a denoiser, and their configuration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, Protocol, get_args

import torch

from scvi_perturb._errors import check_choice
from scvi_perturb.generative.ode import Solver
from scvi_perturb.generative.schedules import Point, grid, ratio, step
from scvi_perturb.registry import Registry, registry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from scvi_perturb.generative.diffusion import Denoiser
    from scvi_perturb.generative.schedules import Schedule

__all__ = [
    "SAMPLERS",
    "SOLVERS",
    "Sampler",
    "SamplerConfig",
    "SamplerName",
    "check_evaluations",
    "ddim",
    "dpm_solver_2m",
    "euler_maruyama",
    "heun",
    "solver_of",
]


class Sampler(Protocol):
    """Signature that all samplers share."""

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


def ddim(
    predict_x0: Denoiser,
    x_1: Tensor,
    schedule: Schedule,
    *,
    n_evaluations: int = 20,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Deterministic first-order sampler; loses spread below about 50 evaluations.

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
        Not used: the sampler is deterministic.

    Returns
    -------
    Samples of the data, shaped as `x_1`.

    Raises
    ------
    ValueError
        If `n_evaluations` is not positive.

    References
    ----------
    Song, Meng and Ermon, Denoising diffusion implicit models, 2021.
    """
    del generator
    check_evaluations(n_evaluations)
    points = grid(schedule, n_evaluations)
    x = x_1
    for now, then in pairwise(points):
        x = step(x, predict_x0(x, now.t), now, then)
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
    Arguments as for `ddim`.

    References
    ----------
    Karras et al., Elucidating the design space of diffusion-based generative models, 2022;
    Salimans and Ho, Progressive distillation for fast sampling of diffusion models, 2022.
    """
    del generator
    check_evaluations(n_evaluations)
    n_steps = n_evaluations // 2 + 1
    points = grid(schedule, n_steps)
    x = x_1
    for i, (now, then) in enumerate(pairwise(points)):
        x0 = predict_x0(x, now.t)
        if i == n_steps - 1 or (i == 0 and n_evaluations % 2 == 0):
            x = step(x, x0, now, then)
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
    """Second-order multi-step sampler, DPM-Solver++(2M): one evaluation a step.

    The denoised data are extrapolated in the log-SNR from the last two steps, except in the first
    and the last step. Arguments as for `ddim`.

    References
    ----------
    Lu et al., DPM-Solver++: fast solver for guided sampling of diffusion models, 2022.
    """
    del generator
    check_evaluations(n_evaluations)
    points = grid(schedule, n_evaluations)
    x, previous, last_width = x_1, None, 0.0
    for i, (now, then) in enumerate(pairwise(points)):
        x0 = predict_x0(x, now.t)
        width = then.log_snr - now.log_snr
        if previous is None or i == n_evaluations - 1:
            estimate = x0
        else:
            estimate = torch.lerp(previous, x0, 1 + width / (2 * last_width))
        x = step(x, estimate, now, then)
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
    evaluations. Arguments as for `ddim`; `generator` gives the noise.

    References
    ----------
    Ho, Jain and Abbeel, Denoising diffusion probabilistic models, 2020; Song et al., Score-based
    generative modeling through stochastic differential equations, 2021.
    """
    check_evaluations(n_evaluations)
    points = grid(schedule, n_evaluations)
    x = x_1
    for now, then in pairwise(points):
        kept = ratio(now, then)
        mean = (then.sigma / now.sigma * kept) * x
        mean = mean + (then.alpha * (1 - kept**2)) * predict_x0(x, now.t)
        noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x = mean + (then.sigma * math.sqrt(1 - kept**2)) * noise
    return x


SamplerName = Literal["heun", "dpm++2m", "ddim", "euler-maruyama", "euler", "rk4"]

#: Solvers of flows, by name.
SOLVERS: Final[tuple[Solver, ...]] = get_args(Solver)

#: Samplers of diffusions by name, those of other packages included.
SAMPLERS: Final[Registry[Sampler]] = registry("samplers")


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

        Raises
        ------
        ValueError
            If the method is none of those that are to be had.
        """
        check_choice("sampler", getattr(sampler, "method", sampler), methods)
        return sampler if isinstance(sampler, SamplerConfig) else cls(method=sampler)


def solver_of(sampler: SamplerConfig) -> Solver:
    """Return the method of a flow.

    Raises
    ------
    ValueError
        If it is a method of diffusions.
    """
    for solver in SOLVERS:
        if solver == sampler.method:
            return solver
    msg = f"sampler={sampler.method!r} is not of flows; choose one of {SOLVERS}."
    raise ValueError(msg)
