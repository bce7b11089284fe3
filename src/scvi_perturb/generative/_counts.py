"""Exact sampling of counts, at a cost that follows the non-zeros.

Most counts of a cell are zero. One uniform a gene decides, against the probability of zero, whether
a count is non-zero; only then is the same uniform pushed through the inverse distribution function.
Large means, which would need many steps there, are drawn as Poisson with a gamma-distributed mean.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from scipy.sparse import csr_matrix

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["sample_counts"]

#: Means above this, and tails that fall off more slowly than this, are drawn as gamma-Poisson.
_LARGE_MEAN: Final = 8.0
_SLOW_DECAY: Final = 0.97
#: Entries treated at a time: a few arrays of this length fit into a core's cache.
_CHUNK: Final = 1 << 18


def sample_counts(
    mu: Tensor,
    theta: Tensor | None,
    zi_logits: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> csr_matrix:
    """Draw counts from Poisson, negative binomial or zero-inflated laws.

    Parameters
    ----------
    mu
        Means `(n_cells, n_genes)`, >= 0, on any device.
    theta
        Inverse dispersions, > 0, `(n_genes,)` or `(n_cells, n_genes)`; None draws from Poisson.
    zi_logits
        Logits of the probability that a count is replaced by zero `(n_cells, n_genes)`.
    generator
        Source of randomness, on the device of `mu`; the operating system's when None.

    Returns
    -------
    Counts `(n_cells, n_genes)`: a canonical CSR matrix of float32 holding integers.

    Raises
    ------
    ValueError
        If a mean is negative or not a number, a dispersion is not positive, or shapes do not match.
    """
    mu = mu.detach().float()
    theta = None if theta is None else theta.detach().float()
    zi_logits = None if zi_logits is None else zi_logits.detach().float()
    _check(mu, theta, zi_logits)
    if generator is None:
        generator = torch.Generator(mu.device)
        generator.seed()
    if mu.device.type != "cpu":
        return csr_matrix(_draw_dense(mu, theta, zi_logits, generator).cpu().numpy())
    random = _numpy_generator(generator)
    n_cells, n_genes = mu.shape
    rows = max(1, _CHUNK // max(n_genes, 1))
    chunks = [
        _draw_chunk(*(_rows(p, slice(i, i + rows)) for p in (mu, theta, zi_logits)), random)
        for i in range(0, n_cells, rows)
    ]
    if not chunks:
        return csr_matrix((n_cells, n_genes), dtype=np.float32)
    lengths, genes, values = (np.concatenate(parts) for parts in zip(*chunks, strict=True))
    starts = np.concatenate([[0], np.cumsum(lengths)])
    return csr_matrix((values, genes, starts), shape=(n_cells, n_genes))


def _check(mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None) -> None:
    if mu.ndim != 2:
        msg = f"mu has shape {tuple(mu.shape)}; expected (n_cells, n_genes)."
        raise ValueError(msg)
    for name, parameter, shapes in (
        ("theta", theta, (mu.shape, mu.shape[1:])),
        ("zi_logits", zi_logits, (mu.shape,)),
    ):
        if parameter is not None and parameter.shape not in shapes:
            expected = " or ".join(str(tuple(shape)) for shape in shapes)
            msg = f"{name} has shape {tuple(parameter.shape)}; expected {expected} as mu has."
            raise ValueError(msg)
    # A minimum is not a number if any entry is not.
    if mu.numel() and not (float(mu.min()) >= 0 and float(mu.max()) < np.inf):
        msg = (
            f"mu ranges from {float(mu.min())} to {float(mu.max())}; expected finite means >= 0. "
            "Check that the decoder's output has no NaN."
        )
        raise ValueError(msg)
    if theta is not None and theta.numel() and not float(theta.min()) > 0:
        msg = f"theta has a minimum of {float(theta.min())}; expected inverse dispersions > 0."
        raise ValueError(msg)


def _numpy_generator(generator: torch.Generator) -> np.random.Generator:
    """Return a NumPy generator seeded by the torch generator, which moves on."""
    seed = torch.randint(2**63 - 1, (4,), generator=generator, device=generator.device)
    return np.random.Generator(np.random.SFC64(seed.tolist()))


def _rows(parameter: Tensor | None, rows: slice) -> Tensor | None:
    return parameter if parameter is None or parameter.ndim == 1 else parameter[rows]


def _draw_dense(
    mu: Tensor, theta: Tensor | None, zi_logits: Tensor | None, generator: torch.Generator
) -> Tensor:
    """Draw every entry as gamma-Poisson: simple, and fast where entries are drawn in parallel."""
    mean = mu
    if theta is not None:
        shape = theta.expand_as(mu).contiguous()
        mean = torch._standard_gamma(shape, generator=generator) * (mu / theta)
    counts = torch.poisson(mean, generator=generator)
    if zi_logits is None:
        return counts
    uniform = torch.rand(mu.shape, generator=generator, device=mu.device)
    return torch.where(uniform < torch.sigmoid(zi_logits), 0.0, counts)


def _draw_chunk(
    mu: Tensor,
    theta: Tensor | None,
    zi_logits: Tensor | None,
    random: np.random.Generator,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """Return the number of non-zeros of each row, their columns and their values."""
    n_cells, n_genes = mu.shape
    rate = mu if theta is None else theta * torch.log1p(mu / theta)
    large = mu > _LARGE_MEAN
    if theta is not None:
        large |= mu * (1 - _SLOW_DECAY) > theta * _SLOW_DECAY
    chance = torch.expm1(-rate).neg_().masked_fill_(large, 1.0)
    if zi_logits is not None:
        chance.mul_(torch.sigmoid(-zi_logits))
    uniform = random.random(mu.numel())
    chances = chance.numpy().ravel()
    at = (uniform < chances).nonzero()[0]
    starts = np.searchsorted(at, np.arange(n_cells + 1) * n_genes)
    genes = at - np.repeat(np.arange(n_cells) * n_genes, np.diff(starts))
    place = uniform[at] / chances[at]
    mean = mu.numpy().ravel()[at]
    shape = None
    if theta is not None:
        shape = theta.numpy()[genes] if theta.ndim == 1 else theta.numpy().ravel()[at]
    is_large = large.numpy().ravel()[at]
    small = (~is_large).nonzero()[0]
    counts = np.empty(len(at), dtype=np.float32)
    rates = rate.numpy().ravel()[at[small]].astype(np.float64)
    counts[small] = _invert(
        mean[small], None if shape is None else shape[small], rates, place[small]
    )
    big = is_large.nonzero()[0]
    lam = mean[big]
    if shape is not None:
        sh = shape[big]
        lam = lam / sh * random.standard_gamma(sh, dtype=np.float32)
    counts[big] = random.poisson(lam)
    found = counts > 0
    if not found.all():
        at, genes, counts = at[found], genes[found], counts[found]
        starts = np.searchsorted(at, np.arange(n_cells + 1) * n_genes)
    return np.diff(starts), genes.astype(np.int32), counts


def _invert(mean, shape, rate, place) -> NDArray[np.float32]:
    """Return the quantiles at `place` of counts known to be non-zero, one level at a time.

    The probability of `k + 1` is that of `k` times `step + offset / (k + 1)`.
    """
    mean = mean.astype(np.float64)
    none = np.exp(-rate)
    if shape is None:
        step, offset = np.zeros_like(mean), mean
        mass = none * mean
    else:
        shape = shape.astype(np.float64)
        step = mean / (mean + shape)
        mass = step * shape
        offset = mass - step
        mass *= none
    left = place * (1 - none) - mass
    result = np.ones(len(mean), dtype=np.float32)
    above = (left > 0).nonzero()[0]
    active = above
    level = 1
    while len(above):
        level += 1
        left, mass = left[above], mass[above]
        step, offset = step[above], offset[above]
        result[active] = level
        mass *= step + offset / level
        # Once no mass is left to take off, what remains is rounding.
        left -= mass
        above = (left > 0).nonzero()[0]
        active = active[above]
        if level > 10000:
            break
    return result
