"""Dispersion of counts around the mean of their group, by moments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["moment_dispersion"]

#: Values that are held densely at a time.
_BLOCK = 4_000_000


def moment_dispersion(counts: Any, group: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ANN401
    """Return `a` in `variance = m + a m**2`, for each gene, `(n_genes,)`; 0 is Poisson.

    The mean `m` of a cell is its total times the proportions of its group. Over all cells,
    `a = sum((x - m)**2 * n / (n - 1) - m) / sum(m**2)`, with `n` the size of the group; what is
    below 0 is set to 0. Groups of one cell say nothing. A gene with no counts gets the ratio of the
    sums over all genes.

    Parameters
    ----------
    counts
        Raw counts, `(n_cells, n_genes)`, an array or CSR.
    group
        Number of the group of each cell, `(n_cells,)`.
    """
    excess, squares = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    step = max(1, _BLOCK // max(counts.shape[1], 1))
    for rows in (np.flatnonzero(group == i) for i in np.unique(group)):
        if len(rows) < 2:
            continue
        sizes = np.asarray(counts[rows].sum(axis=1), np.float64).ravel()
        totals = np.asarray(counts[rows].sum(axis=0), np.float64).ravel()
        share = totals / max(totals.sum(), 1.0)
        for start in range(0, len(rows), step):
            part = counts[rows[start : start + step]]
            dense = np.asarray(part.toarray() if sparse.issparse(part) else part, np.float64)
            mean = sizes[start : start + step, None] * share
            unbiased = len(rows) / (len(rows) - 1)
            excess += ((dense - mean) ** 2 * unbiased - mean).sum(axis=0)
            squares += (mean**2).sum(axis=0)
    common = max(excess.sum() / squares.sum(), 0.0) if squares.sum() > 0 else 0.0
    own = np.divide(excess, squares, out=np.full(len(excess), common), where=squares > 0)
    return np.maximum(own, 0.0)
