"""Is the spread of the predicted cells that of real ones: variances, zeros and correlations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import sparse

from scvi_perturb.metrics._profiles import gene_moments, zero_fraction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Floats, Matrix

__all__ = [
    "MAX_LOG_RATIO",
    "chosen_genes",
    "correlation_agreement",
    "log_variance_ratios",
    "variance_ratio",
    "variance_spread",
    "zero_fraction_error",
]

#: Logarithms of ratios of variances are kept within plus and minus this (a ratio of a million),
#: so that cells without any variance have a number, and a bad one.
MAX_LOG_RATIO = float(np.log(1e6))

#: Standard deviations below this share of the mean are rounding of 32-bit numbers.
ROUNDING = 1e-6


def variance_ratio(
    predicted: Matrix, observed: Matrix, *, genes: NDArray[np.intp] | None = None
) -> float:
    """Return the median over genes of predicted over real variance between cells.

    Parameters
    ----------
    predicted, observed
        Log-normalised cells, `(n, n_genes)` and `(m, n_genes)`, dense or sparse.
    genes
        Indices of the genes to use, for example `top_genes`; None takes all. Genes without
        variance in the real cells are left out.

    Returns
    -------
    1 is right; below 1 the predicted cells are too alike. NaN if no gene varies in the real cells.
    """
    _same_genes(predicted, observed)
    chosen = slice(None) if genes is None else genes
    real = gene_moments(observed)[1][chosen]
    made = gene_moments(predicted)[1][chosen]
    varies = real > 0
    return float(np.median(made[varies] / real[varies])) if varies.any() else float("nan")


def log_variance_ratios(
    predicted: Matrix, observed: Matrix, genes: NDArray[np.intp] | None = None
) -> Floats:
    """Return the logarithm of predicted over real variance between cells, of each gene.

    Parameters
    ----------
    predicted, observed
        Log-normalised cells, `(n, n_genes)` and `(m, n_genes)`, dense or sparse; at least two each.
    genes
        Indices of the genes to use; None takes all.

    Returns
    -------
    Natural logarithms, `(n_chosen,)`: 0 is right, below 0 the predicted cells are too alike. Kept
    within plus and minus `MAX_LOG_RATIO`: a gene that varies in the real cells but not in the
    predicted ones has -13.8, not minus infinity, and so stays in a median or a mean. NaN where
    the real cells do not vary. Sampling alone gives a normal gene a standard deviation of about
    `sqrt(2 / n + 2 / m)` (0.09 for 500 cells each), a skewed gene more.

    Raises
    ------
    ValueError
        If the numbers of genes differ, or a side has fewer than two cells.
    """
    _same_genes(predicted, observed)
    made, real = (chosen_genes(x, genes) for x in (predicted, observed))
    varies = _varies(real)
    ratios = np.full(len(varies), np.nan)
    ratios[varies] = gene_moments(made)[1][varies] / gene_moments(real)[1][varies]
    return np.clip(np.log(np.maximum(ratios, np.finfo(float).tiny)), -MAX_LOG_RATIO, MAX_LOG_RATIO)


def variance_spread(
    predicted: Matrix, observed: Matrix, genes: NDArray[np.intp] | None = None
) -> float:
    """Return the interquartile range over genes of `log_variance_ratios`.

    A factor common to all genes moves the median of the ratios and not their range; the range is
    wide if some genes vary too much and others too little. A gene without any variance in the
    predicted cells could be off by any factor: it counts as the lowest ratio in the lower
    quartile and as the highest in the upper one.

    Parameters
    ----------
    predicted, observed
        Log-normalised cells, `(n, n_genes)` and `(m, n_genes)`, dense or sparse; at least two each.
    genes
        Indices of the genes to use; None takes all.

    Returns
    -------
    Natural logarithms: 0 is perfect; sampling alone gives about 0.12 for normal genes and 500
    cells each. Cells without variance have `2 * MAX_LOG_RATIO`, the largest value there is. NaN
    if no gene varies in the real cells.

    Raises
    ------
    ValueError
        If the numbers of genes differ, or a side has fewer than two cells.
    """
    ratios = log_variance_ratios(predicted, observed, genes)
    ratios = ratios[np.isfinite(ratios)]
    if not ratios.size:
        return float("nan")
    highest = np.where(ratios <= -MAX_LOG_RATIO, MAX_LOG_RATIO, ratios)
    return float(np.quantile(highest, 0.75) - np.quantile(ratios, 0.25))


def correlation_agreement(
    predicted: Matrix,
    observed: Matrix,
    genes: NDArray[np.intp] | None = None,
    *,
    max_genes: int = 200,
) -> float:
    """Return the Pearson correlation over pairs of genes of predicted and real correlations.

    Correlations are shrunken towards 0 by the share of them that is sampling noise. One share for
    all pairs leaves their Pearson correlation as it is, up to the case that matters: correlations
    that are noise altogether become 0 and agree with nothing. Noise that is left lowers the
    agreement of few cells, also that of a replicate, with which it is to be compared.

    Parameters
    ----------
    predicted, observed
        Log-normalised cells, `(n, n_genes)` and `(m, n_genes)`, dense or sparse; at least three
        each.
    genes
        Indices of the genes to use, for example the most variable; None takes all. Genes that do
        not vary in the real cells are left out.
    max_genes
        Of more genes, those with the largest variance in the real cells are taken.

    Returns
    -------
    Agreement in [-1, 1]; 1 is right. A gene that does not vary in the predicted cells correlates
    with nothing (0); if none does, or no pair correlates beyond noise, the agreement is 0. NaN if
    fewer than three genes vary in the real cells, or all of their correlations are noise: both
    depend on the real cells alone.

    Raises
    ------
    ValueError
        If the numbers of genes differ, or a side has fewer than three cells.

    References
    ----------
    Schaefer and Strimmer, A shrinkage approach to large-scale covariance matrix estimation,
    Statistical Applications in Genetics and Molecular Biology 2005.
    """
    _same_genes(predicted, observed)
    made, real = (chosen_genes(x, genes) for x in (predicted, observed))
    if min(len(made), len(real)) < 3:
        msg = f"Found {len(made)} and {len(real)} cells; correlations need at least 3 on each side."
        raise ValueError(msg)
    variance = np.where(_varies(real), real.var(axis=0), 0.0)
    kept = np.argsort(-variance, kind="stable")[: min(max_genes, int((variance > 0).sum()))]
    if len(kept) < 3:
        return float("nan")
    upper = np.triu_indices(len(kept), 1)
    truth, shown = (_shrunken_correlations(x[:, kept])[upper] for x in (real, made))
    truth, shown = truth - truth.mean(), shown - shown.mean()
    sizes = float(np.linalg.norm(truth)), float(np.linalg.norm(shown))
    if sizes[0] == 0:
        return float("nan")
    return float(np.clip(truth @ shown / (sizes[0] * sizes[1]), -1, 1)) if sizes[1] > 0 else 0.0


def zero_fraction_error(predicted: Matrix, observed: Matrix) -> float:
    """Return the mean over genes of the absolute difference of the shares of zeros.

    Parameters
    ----------
    predicted, observed
        Counts or log-normalised cells, `(n, n_genes)` and `(m, n_genes)`, dense or sparse.

    Returns
    -------
    A share in [0, 1]. Its floor is not 0 but what sampling alone gives: compare with a replicate.
    """
    _same_genes(predicted, observed)
    return float(np.abs(zero_fraction(predicted) - zero_fraction(observed)).mean())


def chosen_genes(cells: Matrix, genes: NDArray[np.intp] | None = None) -> Floats:
    """Return chosen genes (all, if None) of cells, dense or sparse, as a dense float64 array."""
    if sparse.issparse(cells):
        rows = sparse.csr_matrix(cells)
        cells = (rows if genes is None else rows[:, genes]).toarray()
    elif genes is not None:
        cells = np.asarray(cells)[:, genes]
    return np.asarray(cells, dtype=np.float64)


def _varies(cells: Floats) -> NDArray[np.bool_]:
    return cells.std(axis=0) > ROUNDING * np.abs(cells).max(axis=0)


def _shrunken_correlations(cells: Floats) -> Floats:
    n = len(cells)
    centred = cells - cells.mean(axis=0)
    varies = _varies(cells)
    scale = np.where(varies, np.sqrt((centred**2).mean(axis=0)), 1.0)
    scores = np.where(varies, centred / scale, 0.0)
    correlations = scores.T @ scores / n
    # Sampling variance of each mean of products.
    squares = scores**2
    noise = (squares.T @ squares / n - correlations**2) / (n - 1)
    off = ~np.eye(len(correlations), dtype=bool)
    signal = float((correlations[off] ** 2).sum())
    shrinkage = min(1.0, float(noise[off].sum()) / signal) if signal > 0 else 1.0
    return np.where(off, (1.0 - shrinkage) * correlations, 1.0)


def _same_genes(predicted: Matrix, observed: Matrix) -> None:
    if predicted.shape[1] != observed.shape[1]:
        msg = (
            f"Found {predicted.shape[1]} predicted and {observed.shape[1]} real genes; "
            "both must hold the same genes in the same order."
        )
        raise ValueError(msg)
