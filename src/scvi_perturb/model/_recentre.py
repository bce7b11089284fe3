"""Move a drawn population onto a mean: one factor a gene, so that its shape stays its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["gene_factors", "population_shares", "recentred"]

_N_ROUNDS: Final = 20
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

    Multiplied by the factors, and renormalised, the proportions of the cells have together the
    shares `target`. Found by fixed point: every round multiplies by what is still missing.

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
        proportions renormalised.

    Returns
    -------
    `(n_genes,)`, positive; between a thousandth and a thousand.
    """
    start = np.maximum(population_shares(proportions, library), _LEAST)
    target = np.maximum(target, _LEAST)
    if partial:
        return np.clip(target / start, 1 / _MOST, _MOST)
    target = target * (start.sum() / target.sum())
    factors = np.ones_like(start)
    for _ in range(_N_ROUNDS):
        current = population_shares(recentred(proportions, factors), library)
        missing = target / np.maximum(current, _LEAST)
        factors = np.clip(factors * missing, 1 / _MOST, _MOST)
        if np.abs(missing - 1).max() < _CLOSE:
            break
    return factors


def recentred(proportions: Floats, factors: Floats) -> Floats:
    """Return proportions times factors, each row with the sum it had."""
    moved = proportions * factors
    before, after = proportions.sum(axis=1), np.maximum(moved.sum(axis=1), 1e-300)
    made: Floats = moved * (before / after)[:, None]
    return made
