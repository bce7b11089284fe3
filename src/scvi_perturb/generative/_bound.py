"""A lower bound on the log-density of a diffusion model, from its denoiser alone."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch
from torch.nn.functional import softplus

from scvi_perturb.generative._schedule import LOG_SNR_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb.generative._parameterisation import Denoiser
    from scvi_perturb.generative._schedule import Schedule

__all__ = ["vdm_bound"]

#: Log-SNRs are drawn from a logistic law of this centre and scale, cut to the schedule's range. The
#: difference of two denoisers decays on both sides no slower than its density, and whitened data
#: with fine structure have most of it above 0.
_CENTRE: Final = 2.0
_SCALE: Final = 2.0


def _gaussian_bound(x0: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return the bound that the denoiser of standard normal data attains between two log-SNRs."""
    n_dim = x0.shape[1]
    square = x0.square().sum(1)
    keep_low, keep_high = torch.sigmoid(low), torch.sigmoid(high)
    noise_low = torch.sigmoid(-low)
    prior = 0.5 * (keep_low * square + n_dim * (noise_low - 1 - torch.log(noise_low)))
    reconstruction = 0.5 * n_dim * (math.log(2 * math.pi) - high + 1)
    gain = softplus(high) - softplus(low) - (keep_high - keep_low)
    error = 0.5 * (square * (keep_high - keep_low) + n_dim * gain)
    return -(prior + reconstruction + error)


@torch.no_grad()
def vdm_bound(
    x0: Tensor,
    predict_x0: Denoiser,
    schedule: Schedule,
    *,
    n_times: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return an unbiased estimate of the variational lower bound on `log p(x_0)`, in nats.

    The continuous-time bound of Kingma et al. is the prior's divergence, the reconstruction at the
    smallest noise and `1/2 E int ||x_0 - x0_hat||^2 d snr`. Here the integral is taken relative to
    the denoiser of standard normal data, whose bound is known in closed form, so that the noise
    which both denoisers share cancels. Log-SNRs are stratified, one a call, the same for all cells.
    The error of a cell falls with the root of `n_times`: for a 32-d mixture whose log-density has
    a standard deviation of 13 nats between cells, it was 4 nats at 64 times.

    Parameters
    ----------
    x0
        Data `(n_cells, n_dim)`, best whitened.
    predict_x0
        Expected data at `(x_t, t)`.
    schedule
        Gives alpha, sigma and the range of the log-SNR.
    n_times
        Number of network calls.
    generator
        Source of randomness, on the device of `x0`.

    Returns
    -------
    Bound `(n_cells,)`.

    Raises
    ------
    ValueError
        If `n_times` is not positive.

    References
    ----------
    Kingma et al., Variational diffusion models, 2021; Kong, Brekelmans and Ver Steeg,
    Information-theoretic diffusion, 2023.
    """
    if n_times < 1:
        msg = f"n_times={n_times}: the bound needs at least one network call."
        raise ValueError(msg)
    ends = torch.tensor([1.0, 0.0], dtype=torch.float64)
    low, high = schedule.log_snr(ends).clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)
    device = x0.device
    offsets = torch.rand(n_times, generator=generator, device=device, dtype=torch.float32).cpu()
    strata = (torch.arange(n_times) + offsets.double()) / n_times
    below, above = torch.sigmoid((low - _CENTRE) / _SCALE), torch.sigmoid((high - _CENTRE) / _SCALE)
    mass = above - below
    place = below + strata * mass
    log_snrs = _CENTRE + _SCALE * torch.logit(place)
    densities = place * (1 - place) / _SCALE / mass
    total = torch.zeros(len(x0), dtype=torch.float64, device=device)
    for log_snr, density in zip(log_snrs, densities, strict=True):
        t = schedule.time_of_log_snr(log_snr)
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        noise = torch.randn(x0.shape, generator=generator, device=device, dtype=x0.dtype)
        x_t = alpha * x0 + sigma * noise
        normal = (x_t * (alpha / (alpha**2 + sigma**2)) - x0).square().sum(1)
        error = (predict_x0(x_t, float(t)).to(x0.dtype) - x0).square().sum(1)
        weight = 0.5 * math.exp(float(log_snr)) / (float(density) * n_times)
        total += weight * (normal - error).double()
    reference = _gaussian_bound(x0.double(), low.to(device), high.to(device))
    return (reference + total).to(x0.dtype)
