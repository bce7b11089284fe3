"""The likelihood of cells, averaged over latents that are drawn for all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.polynomial import chebyshev

from scvi_perturb._core import Key
from scvi_perturb.module.base import CountParameters

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb._core import Batch
    from scvi_perturb.module.autoencoder import CountAutoencoder, ScviRepresentation

#: Cells of like library size that share a table.
_AT_ONCE: Final = 128
#: Share of a difference between latents that interpolation may lose.
_LOST: Final = 1e-7
#: Added to means before their logarithm, as likelihoods do.
_EPSILON: Final = 1e-8


@torch.inference_mode()
def average_likelihood(
    stage: CountAutoencoder | ScviRepresentation, batch: Batch, unit: CountParameters
) -> np.ndarray:
    """Return `log 1/K sum_k p(x | z_k)` of each cell, `(B,)`.

    `unit` are the parameters of the counts at the latents `z_k` and a library size of one.
    """
    device = unit.mean.device
    batch = {key: value.to(device) for key, value in batch.items()}
    spread = unit.dispersion
    if spread.ndim > 1 and bool((spread == spread[:1]).all()):
        spread = spread[0]
    if stage.likelihood in ("nb", "poisson") and spread.ndim == 1:
        theta = spread if stage.likelihood == "nb" else None
        score = _under(stage, batch, unit, 0).double()[:, None].repeat(1, len(unit.mean))
        for rows in batch[Key.LIBRARY].argsort().split(_AT_ONCE):
            nodes, weights = _interpolation(batch[Key.LIBRARY][rows].cpu().double().numpy())
            for node, weight in zip(nodes, weights.T, strict=True):
                gain = _gain(batch[Key.X][rows], float(node) * unit.mean, theta)
                score[rows] += torch.from_numpy(weight).to(device)[:, None] * gain
    else:
        each = [_under(stage, batch, unit, k) for k in range(len(unit.mean))]
        score = torch.stack(each, dim=1).double()
    return (torch.logsumexp(score, dim=1) - math.log(len(unit.mean))).cpu().numpy()


def _under(
    stage: CountAutoencoder | ScviRepresentation, batch: Batch, unit: CountParameters, k: int
) -> Tensor:
    """Return the log-likelihood of each cell at the latent `k`, `(B,)`."""
    shape = batch[Key.X].shape
    mean = unit.mean[k].expand(shape)
    if stage.likelihood != "normal":
        mean = mean * batch[Key.LIBRARY][:, None]
    spread = unit.dispersion[k] if unit.dispersion.ndim > 1 else unit.dispersion
    zeros = None if unit.zero_logits is None else unit.zero_logits[k].expand(shape)
    return stage.log_prob(batch, CountParameters(mean, spread, zeros))


def _interpolation(sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return library sizes `(n,)` and weights `(B, n)` by which functions at them are summed.

    A log-likelihood is analytic in the logarithm of the library size, its singularities lie at a
    distance of pi from the real line: polynomials through a few Chebyshev nodes are exact.
    """
    logs = np.log(sizes)
    own, place = np.unique(logs, return_inverse=True)
    centre, half = (own[-1] + own[0]) / 2, max(own[-1] - own[0], 1e-9) / 2
    degree = math.ceil(-math.log(_LOST) / math.asinh(math.pi / half))
    if degree + 1 >= len(own):
        return np.exp(own), np.eye(len(own))[place]
    points = chebyshev.chebpts1(degree + 1)
    values = np.linalg.inv(chebyshev.chebvander(points, degree))
    return np.exp(centre + half * points), chebyshev.chebvander(
        (logs - centre) / half, degree
    ) @ values


def _gain(x: Tensor, mean: Tensor, theta: Tensor | None) -> Tensor:
    """Return log-likelihoods of counts at each mean over those at the first, `(B, K)`.

    `x`: Counts, `(B, n_genes)`. `mean`: `(K, n_genes)`. `theta`: Inverse dispersions, `(n_genes,)`;
    None for Poisson.
    """
    told = torch.log(mean + _EPSILON)
    if theta is None:
        away = (mean - mean[0]).sum(1)
    else:
        excess = torch.log1p(mean / theta)
        away = (excess - excess[0]) @ theta
        told -= excess
    return x @ (told - told[0]).T - away
