"""Normalised cells and population profiles, the inputs of metrics."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from scvi_perturb._checks import checked
from scvi_perturb._core import TARGET_SUM, log_normalize_cells

Floats: TypeAlias = NDArray[np.floating]
#: Cells by genes, dense or any SciPy sparse format.
Matrix: TypeAlias = NDArray[np.floating] | sparse.spmatrix | sparse.sparray

#: Differences below this share of a value are rounding of 32-bit numbers.
ROUNDING = 1e-6

_CHUNK = 1024


@checked
def log_normalize(counts: Matrix, *, target_sum: float = TARGET_SUM) -> Matrix:
    """Scale each cell to the same total and take `log1p`.

    Parameters
    ----------
    counts
        Raw counts, `(n_cells, n_genes)`, dense or sparse.
    target_sum
        Total of each cell before the logarithm.

    Returns
    -------
    `log1p(target_sum * counts / total of the cell)`, `(n_cells, n_genes)`, float32: CSR if
    `counts` is sparse, else dense. A cell without counts stays zero.

    Raises
    ------
    ValueError
        If a cell has a negative total.
    """
    return log_normalize_cells(counts, target_sum=target_sum).astype(np.float32)


@checked
def gene_moments(cells: Matrix) -> tuple[Floats, Floats]:
    """Return mean and unbiased variance of each gene over cells.

    Parameters
    ----------
    cells
        Values, `(n_cells, n_genes)`, dense or sparse; at least two cells.

    Returns
    -------
    Mean and variance (divided by `n_cells - 1`), `(n_genes,)` each, float64.

    Raises
    ------
    ValueError
        With fewer than two cells: one cell has no variance.
    """
    n_cells = cells.shape[0]
    if n_cells < 2:
        msg = f"Found {n_cells} cells; a variance over cells needs at least 2."
        raise ValueError(msg)
    if not sparse.issparse(cells):
        dense = np.asarray(cells, dtype=np.float64)
        return dense.mean(axis=0), dense.var(axis=0, ddof=1)
    made = sparse.csr_matrix(cells, dtype=np.float64)
    mean = np.asarray(made.mean(axis=0)).ravel()
    # Centred sums: the zeros of a gene contribute mean^2 each; no cancellation of large numbers.
    n_stored = np.bincount(made.indices, minlength=made.shape[1])
    centred = np.bincount(
        made.indices, (made.data - mean[made.indices]) ** 2, minlength=made.shape[1]
    )
    return mean, (centred + (n_cells - n_stored) * mean**2) / (n_cells - 1)


def zero_fraction(cells: Matrix) -> Floats:
    """Return the share of cells in which each gene is 0, `(n_genes,)`."""
    nonzero = np.asarray((cells != 0).sum(axis=0), dtype=np.float64).ravel()
    return 1.0 - nonzero / cells.shape[0]


@checked
def pseudobulk(counts: Matrix, *, target_sum: float = TARGET_SUM) -> Floats:
    """Return the profile of a population: `log1p` of its summed and scaled counts.

    The mean over cells of `log1p` depends on the dispersion too and can be moved without moving
    the mean; the profile of sums cannot.

    Parameters
    ----------
    counts
        Raw counts, `(n_cells, n_genes)`, dense or sparse.
    target_sum
        Total to which the summed counts are scaled.

    Returns
    -------
    `log1p(target_sum * sum over cells / total)`, `(n_genes,)`, float64.

    Raises
    ------
    ValueError
        If a total is negative, or there are no counts at all.
    """
    sums, total = _sums(counts)
    return np.log1p(target_sum * sums / total)


@checked
def pseudobulk_variance(counts: Matrix, *, target_sum: float = TARGET_SUM) -> Floats:
    """Return the sampling variance of each gene of `pseudobulk`, by leaving out one cell at a time.

    Parameters
    ----------
    counts
        Raw counts, `(n_cells, n_genes)`, dense or sparse; at least two cells.
    target_sum
        Total to which the summed counts are scaled.

    Returns
    -------
    Delete-one-cell jackknife variance, `(n_genes,)`, float64.

    Raises
    ------
    ValueError
        With fewer than two cells, or if one cell holds all counts.

    References
    ----------
    Efron and Stein, The jackknife estimate of variance, Annals of Statistics 1981.
    """
    n_cells = counts.shape[0]
    if n_cells < 2:
        msg = f"Found {n_cells} cells; the jackknife needs at least 2."
        raise ValueError(msg)
    sums, total = _sums(counts)
    left = total - _library_sizes(counts)
    if left.min() <= 0:
        msg = "One cell holds all the counts, so leaving it out leaves nothing. Add cells."
        raise ValueError(msg)
    rows = sparse.csr_matrix(counts) if sparse.issparse(counts) else np.asarray(counts)
    centre = np.log1p(target_sum * sums / total)
    first, second = np.zeros_like(sums), np.zeros_like(sums)
    for start in range(0, n_cells, _CHUNK):
        part = slice(start, start + _CHUNK)
        kept = (sums - chosen_genes(rows[part])) / left[part, None]
        deviation = np.log1p(target_sum * kept) - centre
        first += deviation.sum(axis=0)
        second += (deviation**2).sum(axis=0)
    return (n_cells - 1) / n_cells * (second - first**2 / n_cells)


@checked
def chosen_genes(cells: Matrix, genes: NDArray[np.intp] | None = None) -> Floats:
    """Return chosen genes (all, if None) of cells, dense or sparse, as a dense float64 array."""
    if sparse.issparse(cells):
        rows = sparse.csr_matrix(cells)
        cells = (rows if genes is None else rows[:, genes]).toarray()
    elif genes is not None:
        cells = np.asarray(cells)[:, genes]
    return np.asarray(cells, dtype=np.float64)


def _library_sizes(counts: Matrix) -> Floats:
    sizes = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    if sizes.size and sizes.min() < 0:
        msg = "Counts must not be negative; found a cell with a negative total. Pass raw counts."
        raise ValueError(msg)
    return sizes


def _sums(counts: Matrix) -> tuple[Floats, float]:
    total = float(_library_sizes(counts).sum())
    if total <= 0:
        msg = f"Found no counts in {counts.shape[0]} cells; a profile needs at least one."
        raise ValueError(msg)
    return np.asarray(counts.sum(axis=0), dtype=np.float64).ravel(), total
