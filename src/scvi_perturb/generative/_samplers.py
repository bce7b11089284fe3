"""Samplers: from noise to data with a stated number of network evaluations.

All integrate the reverse process of a `Denoiser` `(x_t, t) -> x_0`. With `h` the step in
`log(alpha / sigma)`, the step from `t` to `s` at a fixed denoised `x_0` is exactly
`x_s = (sigma_s / sigma_t) x_t + alpha_s (1 - e^-h) x_0`; samplers differ in how they follow the
change of `x_0` on the way.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

import torch

from scvi_perturb.generative._grid import Point, grid, ratio, step

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb.generative._parameterisation import Denoiser
    from scvi_perturb.generative._schedule import Schedule

__all__ = ["Sampler", "check_evaluations", "ddim", "dpm_solver_2m", "euler_maruyama", "heun"]


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
