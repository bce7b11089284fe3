"""Draw negative binomial, zero-inflated and Poisson counts as sparse matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_matrix

from scvi_perturb._checks import checked
from scvi_perturb._compat import standard_gamma

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

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
    """Draw every entry as gamma-Poisson; fast if entries are drawn in parallel."""
    mean = mu
    if theta is not None:
        shape = theta.expand_as(mu).contiguous()
        mean = standard_gamma(shape, generator=generator) * (mu / theta)
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
    """Return non-zero Poisson counts from uniforms."""
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
    """Return non-zero negative binomial counts from uniforms."""
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


#: Entries treated at a time: a few arrays of this length fit into a core's cache.
_CHUNK: Final = 1 << 18


@checked
def sample_counts(
    mu: Tensor,
    theta: Tensor | None,
    zi_logits: Tensor | None = None,
    *,
    generator: torch.Generator | None = None,
) -> csr_matrix:
    """Draw counts from Poisson, negative binomial or zero-inflated distributions.

    `mu`: Means `(n_cells, n_genes)`, >= 0, on any device. `theta`: Inverse dispersions, > 0,
    `(n_genes,)` or `(n_cells, n_genes)`; None draws from Poisson. `zi_logits`: Logits of the
    probability that a count is replaced by zero `(n_cells, n_genes)`. `generator`: Source of
    randomness, on the device of `mu`; the operating system's when None. Returns counts `(n_cells,
    n_genes)`: a canonical CSR matrix of float32 holding integers. Raises `ValueError`: If a mean is
    negative or not a number, a dispersion is not positive, or shapes do not match.
    """
    mu = mu.detach().float()
    theta = None if theta is None else theta.detach().float()
    zi_logits = None if zi_logits is None else zi_logits.detach().float()
    _check(mu, theta, zi_logits)
    if generator is None:
        generator = torch.Generator(mu.device)
        generator.seed()
    n_cells, n_genes = mu.shape
    if not mu.numel():
        return csr_matrix((n_cells, n_genes), dtype=np.float32)
    if mu.device.type == "cuda":
        parts = [draw_dense(mu, theta, zi_logits, generator)]
    else:
        # Other devices have no gamma law of their own.
        mu, theta, zi_logits = mu.cpu(), _to_cpu(theta), _to_cpu(zi_logits)
        random = _numpy_generator(generator)
        rows = max(1, _CHUNK // n_genes)
        parts = [
            draw_rows(mu[i : i + rows], _rows(theta, i, rows), _rows(zi_logits, i, rows), random)
            for i in range(0, n_cells, rows)
        ]
    drawn = NonZeros(*(np.concatenate(part) for part in zip(*parts, strict=True)))
    starts = np.concatenate([[0], np.cumsum(drawn.lengths)])
    return csr_matrix((drawn.counts, drawn.genes, starts), shape=(n_cells, n_genes))


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


def _to_cpu(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.cpu()


def _rows(parameter: Tensor | None, start: int, n_rows: int) -> Tensor | None:
    if parameter is None or parameter.ndim == 1:
        return parameter
    return parameter[start : start + n_rows]
