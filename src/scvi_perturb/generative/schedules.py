"""Noise schedules of diffusions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol, runtime_checkable

import torch
from torch.nn.functional import softplus

from scvi_perturb._errors import check_choice

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CosineSchedule", "LinearPath", "LinearSchedule", "Schedule", "get_schedule"]


#: No schedule reports a log-SNR beyond this: at 15 the noise is 0.06 % of the signal's scale.
LOG_SNR_LIMIT: Final = 15.0


@runtime_checkable
class Schedule(Protocol):
    """What every schedule offers; `t` and the results are tensors of one shape."""

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

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`, clipped to +-`LOG_SNR_LIMIT`."""
        log_snr = 2 * (torch.log1p(-t) - torch.log(t))
        return log_snr.clamp(-LOG_SNR_LIMIT, LOG_SNR_LIMIT)

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value."""
        return torch.sigmoid(-log_snr / 2)


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


def get_schedule(name: ScheduleName) -> Schedule:
    """Return the schedule of this name with its default parameters.

    Parameters
    ----------
    name
        "cosine", "linear" (both variance-preserving) or "path" (straight line).

    Raises
    ------
    ValueError
        If the name is not known.
    """
    check_choice("schedule", name, _SCHEDULES)
    return _SCHEDULES[name]()
