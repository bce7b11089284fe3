"""The cosine schedule."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scvi_perturb.generative._schedule import LOG_SNR_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CosineSchedule"]


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

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return the derivative of `alpha` with respect to `t`."""
        return -self._rate * self.sigma(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return the derivative of `sigma` with respect to `t`."""
        return self._rate * self.alpha(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`."""
        return -2 * torch.log(torch.tan(self._angle(t)))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value."""
        return (torch.atan(torch.exp(-log_snr / 2)) - self._first) / self._rate
