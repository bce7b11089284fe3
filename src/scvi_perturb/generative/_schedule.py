"""What a noise schedule is: how much of the data and how much noise is in `x_t`.

`x_t = alpha(t) x_0 + sigma(t) eps`, time `t` in [0, 1], `t = 0` data and `t = 1` noise. The log
signal-to-noise ratio `log_snr = log(alpha^2 / sigma^2)` falls with `t`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["LOG_SNR_LIMIT", "Schedule"]

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

    def d_alpha(self, t: Tensor) -> Tensor:
        """Return the derivative of `alpha` with respect to `t`."""
        ...

    def d_sigma(self, t: Tensor) -> Tensor:
        """Return the derivative of `sigma` with respect to `t`."""
        ...

    def log_snr(self, t: Tensor) -> Tensor:
        """Return `log(alpha^2 / sigma^2)`, within `LOG_SNR_LIMIT` of zero."""
        ...

    def time_of_log_snr(self, log_snr: Tensor) -> Tensor:
        """Return the time at which the log-SNR takes this value: the inverse of `log_snr`."""
        ...
