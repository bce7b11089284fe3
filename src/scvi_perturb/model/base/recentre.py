"""Move a population of cells onto a mean: one factor a gene."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scvi_perturb.model.base.draw import Drawn, expected_proportions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from scvi_perturb.module.base import CountParameters

    Floats = NDArray[np.float64]

_N_ROUNDS: Final = 50
#: A share is found when its relative error is less.
_CLOSE: Final = 1e-4
#: Shares below this are taken for it: a factor must stay finite.
_LEAST: Final = 1e-8
#: A gene is never multiplied or divided by more.
_MOST: Final = 1e3


def population_shares(proportions: Floats, library: Floats) -> Floats:
    """Return each gene's share of the summed counts of a population, `(n_genes,)`."""
    return np.asarray(library @ proportions, dtype=np.float64) / library.sum()


def gene_factors(
    proportions: Floats, library: Floats, target: Floats, *, partial: bool = False
) -> Floats:
    """Return the factor of each gene by which a population gets a mean.

    Multiplied by the factors, each cell's with its sum kept, the proportions of the cells have
    together the shares `target`. Found by iterative proportional fitting: every round multiplies
    by what is still missing. Where no factors do it, because a gene is hardly there or the cells
    that have it have little else, it ends as near as it came.

    Parameters
    ----------
    proportions
        Expected shares of the genes in each cell, `(n_cells, n_genes)`; rows sum to at most 1.
    library
        Library sizes, `(n_cells,)`.
    target
        Shares wanted of the summed counts, `(n_genes,)`; scaled to the sum of those that are.
    partial
        Whether the genes are some of the library's only: then neither is anything scaled nor are
        the sums of cells kept.

    Returns
    -------
    `(n_genes,)`, positive; between a thousandth and a thousand.
    """
    start = np.maximum(population_shares(proportions, library), _LEAST)
    target = np.maximum(target, _LEAST)
    if not partial:
        target = target * (start.sum() / target.sum())
    target = np.clip(target, start / _MOST, start * _MOST)
    if partial:
        return target / start
    target *= start.sum() / target.sum()  # or what is out of reach drives all others to a bound
    weight = library * proportions.sum(axis=1) / library.sum()
    factors = np.ones_like(start)
    for _ in range(_N_ROUNDS):
        scale = weight / np.maximum(proportions @ factors, 1e-300)
        missing = target / np.maximum(factors * (scale @ proportions), _LEAST)
        factors = np.clip(factors * missing, 1 / _MOST, _MOST)
        if np.abs(missing - 1).max() < _CLOSE:
            break
    return factors


def group_populations(
    drawn: Iterable[Drawn], group: np.ndarray, likelihood: str
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield each group with the expected proportions and the library sizes of its cells.

    `group` is that of each entry of the plan drawn, whose entries stand together by group.
    """
    parts: list[tuple[Floats, Floats]] = []
    current = -1
    for chunk in drawn:
        of, library = group[chunk.cells], chunk.library.cpu().numpy()
        shares = expected_proportions(chunk, likelihood)
        for own in np.split(np.arange(len(of)), np.flatnonzero(np.diff(of)) + 1):
            if parts and of[own[0]] != current:
                yield current, *_joined(parts)
                parts = []
            current = int(of[own[0]])
            parts.append((shares[own], library[own]))
    if parts:
        yield current, *_joined(parts)


def _joined(parts: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    shares, library = zip(*parts, strict=True)
    return np.concatenate(shares), np.concatenate(library)


def rescaled(drawn: Drawn, factors: Floats, likelihood: str, *, partial: bool) -> Drawn:
    """Return drawn cells with their proportions times factors, `(n_cells, n_genes)`."""
    device = drawn.library.device
    factor = torch.from_numpy(factors.astype(np.float32)).to(device)
    return replace(
        drawn, parameters=rescaled_parameters(drawn.parameters, factor, likelihood, partial=partial)
    )


def rescaled_parameters(
    parameters: CountParameters, factor: torch.Tensor, likelihood: str, *, partial: bool
) -> CountParameters:
    """Return parameters of counts whose expected proportions are multiplied by a factor a gene.

    The sum of what is expected of a cell stays, unless the genes are `partial`; dispersions and the
    probability of extra zeros stay too. Of a Normal likelihood of `log1p` values it is what these
    expect of proportions that moves.
    """
    normal = likelihood == "normal"
    mean = torch.expm1(parameters.mean).clamp_min(0) if normal else parameters.mean
    new = mean * factor
    if not partial:
        zeros = parameters.zero_logits
        there = torch.ones_like(mean) if zeros is None else torch.sigmoid(-zeros)
        before, after = ((x * there).sum(-1, keepdim=True) for x in (mean, new))
        new = new * (before / after.clamp_min(1e-12))
    return parameters._replace(mean=torch.log1p(new) if normal else new)
