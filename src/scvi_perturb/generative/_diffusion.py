"""Training a diffusion model: noising, the loss, guidance."""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import torch

from scvi_perturb._errors import check_choice
from scvi_perturb.generative._parameterisation import Parameterisation, scales

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb.generative._schedule import Schedule

__all__ = ["add_noise", "denoising_loss", "guide", "min_snr_weight"]


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Return `x_t = alpha x_0 + sigma eps`.

    Parameters
    ----------
    x0, noise
        Data and standard normal noise `(n_cells, n_dim)`.
    t
        Times in [0, 1], `(n_cells,)` or 0-d.
    schedule
        Gives alpha and sigma.
    """
    alpha, sigma = scales(t, schedule, x0)
    return alpha * x0 + sigma * noise


def min_snr_weight(
    t: Tensor,
    schedule: Schedule,
    parameterisation: Parameterisation = "v",
    gamma: float = 5.0,
) -> Tensor:
    """Return the weight of a squared error at time `t` under min-SNR weighting.

    An error of `x_0` weighs `min(snr, gamma)`; an error of `eps` or `v` weighs what gives the same
    loss. Times as any shape; the weights have the same shape.

    References
    ----------
    Hang et al., Efficient diffusion training via min-SNR weighting strategy, 2023.
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

    Parameters
    ----------
    prediction
        Output of the network at `add_noise(x0, noise, t, schedule)`, `(n_cells, n_dim)`.
    x0, noise
        Data and the noise that was added `(n_cells, n_dim)`.
    t
        Times in [0, 1], `(n_cells,)` or 0-d.
    schedule
        Gives alpha and sigma.
    parameterisation
        What the network predicts.
    gamma
        Limit of min-SNR weighting; None weighs all times alike.

    Returns
    -------
    Loss `(n_cells,)`: weighted squared error, averaged over dimensions.
    """
    check_choice("parameterisation", parameterisation, get_args(Parameterisation))
    if parameterisation == "x0":
        target = x0
    elif parameterisation == "eps":
        target = noise
    else:
        alpha, sigma = scales(t, schedule, x0)
        target = alpha * noise - sigma * x0
    error = (prediction.float() if prediction.dtype != torch.float64 else prediction) - target
    loss = error.square().flatten(1).mean(1)
    if gamma is None:
        return loss
    return min_snr_weight(t, schedule, parameterisation, gamma) * loss


def guide(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Return the classifier-free guided prediction.

    Parameters
    ----------
    conditional, unconditional
        Predictions with and without the condition, of one shape.
    scale
        0 is unconditional, 1 conditional; above 1 the condition is overstated and spread shrinks.

    References
    ----------
    Ho and Salimans, Classifier-free diffusion guidance, 2022.
    """
    return torch.lerp(unconditional, conditional, scale)
