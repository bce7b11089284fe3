"""Ratios of gamma functions that negative binomial likelihoods need, fast and well conditioned.

`lgamma(x + theta) - lgamma(theta)` taken literally loses all digits in float32 once theta is large,
and torch's `digamma` is slow on CPUs. Here both come from Stirling's formula, whose remainder
`r(z) = lgamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2)` is a polynomial in `1 / z`. In float64
they are evaluated as written.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["digamma_excess", "log_rising", "log_rising_slope", "stirling_remainder"]

#: Least-squares fits at Chebyshev nodes on 1 / z in (0, 1], highest power first: of z r(z), error
#: 7e-8, and of z^2 r'(z), error 4e-8.
_REMAINDER: Final = (-2.18725e-4, 5.82816e-4, 1.88621e-4, -2.829256e-3, 4.68e-6, 8.3333267e-2)
_SLOPE: Final = (
    -8.75419e-4,
    3.546859e-3,
    -4.987177e-3,
    9.1932e-5,
    8.34295e-3,
    -1.539e-6,
    -8.3333312e-2,
)


def _polynomial(coefficients: Sequence[float], u: Tensor) -> Tensor:
    value = u * coefficients[0]
    for coefficient in coefficients[1:-1]:
        value.add_(coefficient).mul_(u)
    return value.add_(coefficients[-1])


def _digamma_excess_above_one(u: Tensor) -> Tensor:
    """Return `digamma(z) - log(z)` at `u = 1 / z`, `z >= 1`."""
    return _polynomial(_SLOPE, u).mul_(u).sub_(0.5).mul_(u)


def stirling_remainder(theta: Tensor) -> Tensor:
    """Return `r(theta)`, `theta > 0`."""
    if theta.dtype == torch.float64:
        leading = (theta - 0.5) * torch.log(theta) - theta + 0.5 * math.log(2 * math.pi)
        return torch.lgamma(theta) - leading
    # r(z) = r(z + 1) + (z + 1/2) log(1 + 1 / z) - 1 moves the argument to where the fit holds.
    u = 1 / (theta + 1)
    return _polynomial(_REMAINDER, u).mul_(u) + (theta + 0.5) * torch.log1p(1 / theta) - 1


def digamma_excess(theta: Tensor) -> Tensor:
    """Return `digamma(theta) - log(theta)`, `theta > 0`."""
    if theta.dtype == torch.float64:
        return torch.digamma(theta) - torch.log(theta)
    inverse = 1 / theta
    return _digamma_excess_above_one(1 / (theta + 1)) + torch.log1p(inverse) - inverse


def log_rising(x: Tensor, theta: Tensor, remainder: Tensor) -> Tensor:
    """Return `lgamma(x + theta) - lgamma(theta) - x log(theta)` for `x >= 1`.

    `remainder` is `stirling_remainder(theta)`; all have one shape.
    """
    if theta.dtype == torch.float64:
        return torch.lgamma(x + theta) - torch.lgamma(theta) - x * torch.log(theta)
    z = x + theta
    u = 1 / z
    value = torch.log1p(x / theta).mul_(z.sub_(0.5)).sub_(x)
    return value.add_(_polynomial(_REMAINDER, u).mul_(u)).sub_(remainder)


def log_rising_slope(x: Tensor, theta: Tensor, excess: Tensor) -> Tensor:
    """Return `digamma(x + theta) - digamma(theta)` for `x >= 1`.

    `excess` is `digamma_excess(theta)`; all have one shape.
    """
    if theta.dtype == torch.float64:
        return torch.digamma(x + theta) - torch.digamma(theta)
    value = _digamma_excess_above_one(1 / (x + theta))
    return value.add_(torch.log1p(x / theta)).sub_(excess)
