"""Move a drawn population onto a mean: one factor a gene, so that its shape stays its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["gene_factors", "population_shares"]

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
