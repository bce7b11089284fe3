"""How much groups of variables depend on each other, from a batch of draws."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["hsic", "total_correlation"]

#: Fewer points than this say nothing of dependence.
_FEWEST = 4


def hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return the normalised Hilbert-Schmidt criterion of independence of two groups.

    Gaussian kernels whose width is the median distance; 0 if independent (in the limit of many
    points), 1 if each determines the other in the same way.

    Parameters
    ----------
    first, second
        Draws of the groups of the same cells, `(n, k)` and `(n, l)`.

    Returns
    -------
    A number in [0, 1], 0 for fewer than four points.

    References
    ----------
    Gretton et al., Measuring statistical dependence with Hilbert-Schmidt norms, 2005.
    """
    if len(first) < _FEWEST:
        return first.new_zeros(())
    one, two = _centred_kernel(first), _centred_kernel(second)
    scale = (one.square().mean() * two.square().mean()).clamp_min(1e-20).sqrt()
    return (one * two).mean() / scale


def _centred_kernel(points: Tensor) -> Tensor:
    squared = torch.cdist(points, points).square()
    width = squared.detach().median().clamp_min(1e-6)
    kernel = torch.exp(-squared / width)
    rows = kernel.mean(0, keepdim=True)
    return kernel - rows - rows.T + kernel.mean()


def total_correlation(
    means: Sequence[Tensor],
    log_variances: Sequence[Tensor],
    draws: Sequence[Tensor],
    *,
    n_total: int,
) -> Tensor:
    """Estimate the total correlation of groups of latents of an aggregate posterior, nats.

    `KL(q(z) || prod_g q(z_g))` with both densities estimated from the batch (minibatch-weighted
    sampling); the estimate is biased, its gradient useful.

    Parameters
    ----------
    means, log_variances, draws
        Gaussian posterior and a draw of each group, `(n, k_g)`.
    n_total
        Number of cells that the batch stands for.

    Returns
    -------
    A number, 0 for fewer than four cells.

    References
    ----------
    Chen et al., Isolating sources of disentanglement in variational autoencoders, 2018.
    """
    n = len(draws[0])
    if n < _FEWEST:
        return draws[0].new_zeros(())
    scale = math.log(n * n_total)
    each = []
    for mean, log_variance, draw in zip(means, log_variances, draws, strict=True):
        away = (draw[:, None] - mean[None]).square() / log_variance.exp()[None]
        each.append(-0.5 * (away + log_variance[None] + math.log(2 * math.pi)).sum(-1))
    together = torch.logsumexp(torch.stack(each).sum(0), dim=1) - scale
    apart = sum((torch.logsumexp(one, dim=1) - scale for one in each), torch.zeros_like(together))
    return (together - apart).mean()
