"""How much groups of variables depend on each other, from a batch of draws."""

from __future__ import annotations

import math
from itertools import combinations
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Fewer points than this give no estimate of dependence.
_FEWEST = 4
#: Points whose distances from all others set the width of a kernel.
_FOR_WIDTH = 32


def hsic(*groups: Tensor) -> Tensor:
    """Return the normalised Hilbert-Schmidt criterion of dependence, summed over pairs of groups.

    Gaussian kernels whose width is the median distance. Of a pair it is 0 if independent (in the
    limit of many points), 1 if each determines the other in the same way.

    `*groups`: Draws of groups of variables of the same cells, `(n, k)` each. Returns a number from
    0 to the number of pairs, 0 for fewer than four points.

    Reference: Gretton et al., Measuring statistical dependence with Hilbert-Schmidt norms, 2005.
    """
    total = groups[0].new_zeros(())
    if len(groups[0]) < _FEWEST:
        return total
    kernels = [_centred_kernel(points) for points in groups]
    for one, two in combinations(kernels, 2):
        total = total + (one * two).mean()
    return total


def _centred_kernel(points: Tensor) -> Tensor:
    """Return a kernel with rows and columns of mean 0, whose mean square is 1."""
    squared = torch.cdist(points, points).square()
    some = squared.detach()[:, :: max(1, len(points) // _FOR_WIDTH)]
    kernel = torch.exp(-squared / some.median().clamp_min(1e-6))
    rows = kernel.mean(0, keepdim=True)
    centred = kernel - rows - rows.T + kernel.mean()
    return centred / centred.square().mean().clamp_min(1e-12).sqrt()


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

    `means`, `log_variances`, `draws`: Gaussian posterior and a draw of each group, `(n, k_g)`.
    `n_total`: Number of cells that the batch stands for. Returns a number, 0 for fewer than four
    cells.

    Reference: Chen et al., Isolating sources of disentanglement in variational autoencoders, 2018.
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
