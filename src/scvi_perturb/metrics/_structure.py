"""Is the spread of the predicted cells that of real ones: variances and zeros of single genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.metrics._profiles import gene_moments, zero_fraction

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Matrix

__all__ = ["variance_ratio", "zero_fraction_error"]


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


def _same_genes(predicted: Matrix, observed: Matrix) -> None:
    if predicted.shape[1] != observed.shape[1]:
        msg = (
            f"Found {predicted.shape[1]} predicted and {observed.shape[1]} real genes; "
            "both must hold the same genes in the same order."
        )
        raise ValueError(msg)
