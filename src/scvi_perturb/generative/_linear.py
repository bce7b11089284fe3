"""The schedule of linear rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import softplus

from scvi_perturb.generative._schedule import LOG_SNR_LIMIT

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LinearSchedule"]


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

    def _rate(self, t: Tensor) -> Tensor:
        """Return the derivative of `log alpha` with respect to `t`."""
        span = 1 - self._first
        s = self._first + span * t
        return -span * ((self.beta_max - self.beta_min) / 2 * s + self.beta_min / 2)

    def alpha(self, t: Tensor) -> Tensor:
        """Return the scale of the data in `x_t`."""
        return torch.exp(self._log_alpha(t))

    def sigma(self, t: Tensor) -> Tensor:
        """Return the scale of the noise in `x_t`."""
        return torch.sqrt(-torch.expm1(2 * self._log_alpha(t)))

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return the derivative of `alpha` with respect to `t`."""
        return self._rate(t) * self.alpha(t)

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return the derivative of `sigma` with respect to `t`."""
        return -self._rate(t) * self.alpha(t) ** 2 / self.sigma(t)

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`."""
        decay = 2 * self._log_alpha(t)
        return decay - torch.log(-torch.expm1(decay))

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value."""
        decay = 0.5 * softplus(-log_snr)
        root = torch.sqrt(self.beta_min**2 / 4 + (self.beta_max - self.beta_min) * decay)
        return (2 * decay / (self.beta_min / 2 + root) - self._first) / (1 - self._first)
