"""Gaussian diffusion: noising, parameterisations of the network, and the loss."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal, get_args

import torch
from torch import Tensor

from scvi_perturb._checks import check_choice, checked
from scvi_perturb.generative.samplers import LOG_SNR_LIMIT

if TYPE_CHECKING:
    from scvi_perturb.generative.samplers import Schedule

Parameterisation = Literal["v", "eps", "x0"]

#: Scales are kept above this where they are divided by (the scale at the log-SNR's limit).
_SMALLEST: Final = math.exp(-LOG_SNR_LIMIT / 2)


def _scales(t: Tensor, schedule: Schedule, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return alpha and sigma, shaped to multiply `like` cell by cell."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if t.ndim:
        shape = (-1,) + (1,) * (like.ndim - 1)
        alpha, sigma = alpha.view(shape), sigma.view(shape)
    return alpha, sigma


def to_x0(
    prediction: Tensor,
    x_t: Tensor,
    t: Tensor,
    schedule: Schedule,
    parameterisation: Parameterisation = "v",
) -> Tensor:
    """Return the data that a network's prediction implies.

    `prediction`: Output of the network `(n_cells, n_dim)`. `x_t`: Its noisy input `(n_cells,
    n_dim)`. `t`: Times in [0, 1], `(n_cells,)` or 0-d. `schedule`: Gives alpha and sigma.
    `parameterisation`: What the network predicts. Raises `ValueError`: If the parameterisation is
    not known.

    Reference: Salimans and Ho, Progressive distillation for fast sampling of diffusion models,
    2022.
    """
    check_choice("parameterisation", parameterisation, get_args(Parameterisation))
    if parameterisation == "x0":
        return prediction
    alpha, sigma = _scales(t, schedule, x_t)
    if parameterisation == "eps":
        return (x_t - sigma * prediction) / alpha.clamp_min(_SMALLEST)
    return (alpha * x_t - sigma * prediction) / (alpha**2 + sigma**2)


@checked
def add_noise(x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Return `x_t = alpha x_0 + sigma eps`.

    `x0`, `noise`: Data and standard normal noise `(n_cells, n_dim)`. `t`: Times in [0, 1],
    `(n_cells,)` or 0-d. `schedule`: Gives alpha and sigma.
    """
    alpha, sigma = _scales(t, schedule, x0)
    return alpha * x0 + sigma * noise


def min_snr_weight(
    t: Tensor, schedule: Schedule, parameterisation: Parameterisation = "v", gamma: float = 5.0
) -> Tensor:
    """Return the weight of a squared error at time `t` under min-SNR weighting.

    An error of `x_0` weighs `min(snr, gamma)`; an error of `eps` or `v` weighs what gives the same
    loss. Times as any shape; the weights have the same shape.

    Reference: Hang et al., Efficient diffusion training via min-SNR weighting strategy, 2023.
    """
    check_choice("parameterisation", parameterisation, get_args(Parameterisation))
    snr = torch.exp(schedule.log_snr(t))
    weight = snr.clamp_max(gamma)
    if parameterisation == "x0":
        return weight
    if parameterisation == "eps":
        return weight / snr
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return weight * (sigma / (alpha**2 + sigma**2)) ** 2


@checked
def denoising_loss(
    prediction: Tensor,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    *,
    schedule: Schedule,
    parameterisation: Parameterisation = "v",
    gamma: float | None = 5.0,
) -> Tensor:
    """Return the weighted mean squared error of a prediction, one value a cell.

    `prediction`: Output of the network at `add_noise(x0, noise, t, schedule)`, `(n_cells, n_dim)`.
    `x0`, `noise`: Data and the noise that was added `(n_cells, n_dim)`. `t`: Times in [0, 1],
    `(n_cells,)` or 0-d. `schedule`: Gives alpha and sigma. `parameterisation`: What the network
    predicts. `gamma`: Limit of min-SNR weighting; None weighs all times alike. Returns loss
    `(n_cells,)`: weighted squared error, averaged over dimensions.
    """
    check_choice("parameterisation", parameterisation, get_args(Parameterisation))
    if parameterisation == "x0":
        target = x0
    elif parameterisation == "eps":
        target = noise
    else:
        alpha, sigma = _scales(t, schedule, x0)
        target = alpha * noise - sigma * x0
    error = (prediction.float() if prediction.dtype != torch.float64 else prediction) - target
    loss = error.square().flatten(1).mean(1)
    if gamma is None:
        return loss
    return min_snr_weight(t, schedule, parameterisation, gamma) * loss
