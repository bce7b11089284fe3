"""Whether a prediction resembles its own condition more than the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Floats

__all__ = ["discrimination"]


def discrimination(
    predicted: Floats, observed: Floats, *, targeted: NDArray[np.bool_] | None = None
) -> Floats:
    """Return how early each prediction finds its own condition among all real ones.

    Real conditions are ordered by the cosine distance of their change to the predicted change;
    `1 - rank / (n - 1)`, where equal distances share the mean of their ranks. A prediction that is
    the same for all conditions therefore averages 0.5, and one of no change scores 0.5 everywhere.

    Parameters
    ----------
    predicted, observed
        Changes from the *real* control, `(n_conditions, n_genes)`, conditions in the same order.
    targeted
        Genes that any of the conditions targets, `(n_genes,)`. They are left out of every
        comparison: with other conditions' targets in, a prediction could raise those to be told
        apart without knowing any effect. None leaves none out.

    Returns
    -------
    A number in [0, 1] for each condition, `(n_conditions,)`: 1 if its own condition is the
    nearest, 0.5 by chance. NaN with fewer than two conditions or without genes.

    Raises
    ------
    ValueError
        If shapes differ or values are not finite.

    References
    ----------
    Wu et al., PerturBench, 2024; Virtual Cell Challenge 2026.
    """
    predicted, observed = (np.asarray(x, dtype=np.float64) for x in (predicted, observed))
    _check(predicted, observed)
    kept = slice(None) if targeted is None else ~np.asarray(targeted, dtype=bool)
    distance = _cosine_distance(predicted[:, kept], observed[:, kept])
    n = len(distance)
    if n < 2 or observed[:, kept].shape[1] == 0:
        return np.full(n, np.nan)
    own = np.diagonal(distance)[:, None]
    nearer, equal = (distance < own).sum(axis=1), (distance == own).sum(axis=1)
    return 1.0 - (nearer + (equal - 1) / 2.0) / (n - 1)


def _cosine_distance(predicted: Floats, observed: Floats) -> Floats:
    """Return distances, `(n, m)`; 1 to and from a vector of zeros.

    Rows that are equal are compared once: products of matrices round by position, which would
    put equal rows in an order.
    """
    (ours, row), (real, column) = (
        np.unique(x, axis=0, return_inverse=True) for x in (predicted, observed)
    )
    sizes = [np.sqrt(np.einsum("ij,ij->i", x, x)) for x in (ours, real)]
    scale = sizes[0][:, None] * sizes[1]
    cosine = np.divide(ours @ real.T, scale, out=np.zeros_like(scale), where=scale > 0)
    distance = np.clip(1.0 - cosine, 0.0, 2.0)
    found: Floats = distance[row.reshape(-1)][:, column.reshape(-1)]
    return found


def _check(predicted: Floats, observed: Floats) -> None:
    if predicted.shape != observed.shape or predicted.ndim != 2:
        msg = (
            f"Found changes of shape {predicted.shape} and {observed.shape}; both must be "
            "(n_conditions, n_genes), with the same conditions and genes in the same order."
        )
        raise ValueError(msg)
    if not (np.isfinite(predicted).all() and np.isfinite(observed).all()):
        msg = (
            "Found values that are not finite in the changes, which have no place in a ranking; "
            "leave out conditions without a profile."
        )
        raise ValueError(msg)
