"""Drawing the non-zero counts of some cells.

Most counts of a cell are zero. One uniform a gene decides, against the probability of zero, whether
a count is non-zero; only there the same uniform, scaled to (0, 1), goes through the inverse
distribution function of a non-zero count. Large counts, which would need many steps there, come
from their Poisson process instead: the uniform gives the first arrival, and what arrives after it
is Poisson with a gamma-distributed rate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["NonZeros", "draw_dense", "draw_rows"]

#: Means, and ratios of mean to inverse dispersion, above which a count is drawn by arrivals.
_LARGE_MEAN: Final = 8.0
_LARGE_ODDS: Final = 20.0
#: Probability of a single count below which the search for a quantile ends.
_NO_MASS: Final = 1e-18


class NonZeros(NamedTuple):
    """The non-zero entries of some rows: number in each row, columns, counts."""

    lengths: NDArray[np.int64]
    genes: NDArray[np.int32]
    counts: NDArray[np.float32]


def draw_rows(
    mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, random: np.random.Generator
) -> NonZeros:
    """Draw some rows: find the non-zeros, then their counts."""
    rate = mu.clone() if theta is None else (mu / theta).log1p_().mul_(theta)
    chance = rate.neg_().expm1_().neg_()
    if zi_logits is not None:
        chance.mul_(torch.sigmoid(-zi_logits))
    chances = chance.numpy().ravel()
    uniform = random.random(mu.numel())
    at = (uniform < chances).nonzero()[0]
    place = uniform.take(at)
    place /= chances.take(at)
    lengths, genes = _locate(at, mu.shape)
    mean = mu.numpy().ravel().take(at).astype(np.float64)
    if theta is None:
        counts = _count_poisson(mean, place, random)
    else:
        shape = theta.numpy().take(genes if theta.ndim == 1 else at).astype(np.float64)
        counts = _count_gamma_poisson(mean, shape, place, random)
    return NonZeros(lengths, genes.astype(np.int32), counts)


def draw_dense(
    mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, generator: torch.Generator
) -> NonZeros:
    """Draw every entry as gamma-Poisson: simple, and fast where entries are drawn in parallel."""
    mean = mu
    if theta is not None:
        shape = theta.expand_as(mu).contiguous()
        mean = torch._standard_gamma(shape, generator=generator) * (mu / theta)
    counts = torch.poisson(mean, generator=generator)
    if zi_logits is not None:
        uniform = torch.rand(mu.shape, generator=generator, device=mu.device)
        counts = counts.masked_fill_(uniform < torch.sigmoid(zi_logits), 0)
    at = torch.nonzero(counts.view(-1)).squeeze(1)
    values = counts.view(-1).index_select(0, at).cpu().numpy()
    lengths, genes = _locate(at.cpu().numpy(), counts.shape)
    return NonZeros(lengths, genes.astype(np.int32), values)


def _locate(
    at: NDArray[np.int64], shape: Sequence[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the number of entries in each row, and the columns, of sorted flat positions."""
    first = np.arange(shape[0] + 1) * shape[1]
    lengths = np.diff(np.searchsorted(at, first))
    return lengths, at - np.repeat(first[:-1], lengths)


def _count_poisson(
    mean: NDArray[np.float64], place: NDArray[np.float64], random: np.random.Generator
) -> NDArray[np.float32]:
    """Return non-zero Poisson counts from uniforms `place`."""
    none = np.exp(-mean)
    place = place * (1 - none)
    large = (mean > _LARGE_MEAN).nonzero()[0]
    mass = none * mean
    left = place - mass
    left[large] = 0
    counts = _invert(left, mass, np.zeros_like(mean), mean)
    rate = mean.take(large)
    first = np.minimum(-np.log1p(-place.take(large)) / rate, 1)
    counts[large] = 1 + random.poisson(rate * (1 - first))
    return counts


def _count_gamma_poisson(
    mean: NDArray[np.float64],
    shape: NDArray[np.float64],
    place: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.float32]:
    """Return non-zero negative binomial counts from uniforms `place`."""
    odds = mean / shape
    # torch's log1p and expm1 are vectorised, NumPy's are not.
    none = np.exp(-shape * torch.from_numpy(odds).log1p().numpy())
    place = place * (1 - none)
    large = ((mean > _LARGE_MEAN) | (odds > _LARGE_ODDS)).nonzero()[0]
    step = odds / (1 + odds)
    mass = step * shape
    offset = mass - step
    mass *= none
    left = place - mass
    left[large] = 0
    counts = _invert(left, mass, step, offset)
    # The first arrival at a rate of gamma law lies before t with probability
    # 1 - (1 + t odds)^-shape, and given it, shape and inverse scale of the rate are 1 and t more.
    shape = shape.take(large)
    scale = 1 / odds.take(large)
    exponent = torch.from_numpy(np.log1p(-place.take(large)) / -shape)
    first = np.minimum(scale * exponent.expm1_().numpy(), 1)
    rate = random.standard_gamma(shape + 1) / (scale + first)
    counts[large] = 1 + random.poisson(rate * (1 - first))
    return counts


def _invert(
    left: NDArray[np.float64],
    mass: NDArray[np.float64],
    step: NDArray[np.float64],
    offset: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Count up from 1 while probability is left.

    `mass` is the probability of 1, `left` what the uniform exceeds it by; the probability of `k`
    is that of `k - 1` times `step + offset / k`.
    """
    counts = np.ones(len(left), dtype=np.float32)
    above = (left > 0).nonzero()[0]
    active = above
    count = 1
    while len(above):
        count += 1
        left, mass, step, offset = (a.take(above) for a in (left, mass, step, offset))
        counts[active] = count
        mass *= step + offset / count
        left -= mass
        if count % 32 == 0:
            # What is left once the masses have died out is rounding.
            left[mass < _NO_MASS] = 0
        above = (left > 0).nonzero()[0]
        active = active.take(above)
    return counts
