"""The straight path."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scvi_perturb.generative._schedule import LOG_SNR_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LinearPath"]


@dataclass(frozen=True, slots=True)
class LinearPath:
    """Straight path between data and noise: `alpha = 1 - t`, `sigma = t`, exactly.

    The log-SNR is infinite at the ends and is reported clipped to +-`LOG_SNR_LIMIT`.

    References
    ----------
    Lipman et al., Flow matching for generative modeling, 2023.
    """

    def alpha(self, t: Tensor) -> Tensor:
        """Return the scale of the data in `x_t`."""
        return 1 - t

    def sigma(self, t: Tensor) -> Tensor:
        """Return the scale of the noise in `x_t`."""
        return t.clone()

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return the derivative of `alpha` with respect to `t`."""
        return -torch.ones_like(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return the derivative of `sigma` with respect to `t`."""
        return torch.ones_like(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`, clipped to +-`LOG_SNR_LIMIT`."""
        log_snr = 2 * (torch.log1p(-t) - torch.log(t))
        return log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value."""
        return torch.sigmoid(-log_snr / 2)
