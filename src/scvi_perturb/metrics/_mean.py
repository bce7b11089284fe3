"""How well the mean response is predicted: direction and magnitude of the shift from control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Floats

__all__ = ["ROUNDING", "nmse", "nmse_terms", "pearson_delta", "same_length", "top_genes"]


#: Changes below this share of the profile are rounding of 32-bit numbers.
ROUNDING = 1e-6


def top_genes(observed: Floats, control: Floats, k: int) -> NDArray[np.intp]:
    """Return the `k` genes with the largest true change, largest first.

    Parameters
    ----------
    observed, control
        Profiles of the real condition and of its real control, `(n_genes,)`.
    k
        Number of genes; all, if there are fewer.

    Returns
    -------
    Indices of genes, `(min(k, n_genes),)`. Ties keep the order of the genes.
    """
    if k < 1:
        msg = f"k={k}; ask for at least 1 gene."
        raise ValueError(msg)
    return np.argsort(-np.abs(observed - control), kind="stable")[:k]


def pearson_delta(
    predicted: Floats, observed: Floats, control: Floats, *, k: int | None = None
) -> float:
    """Return the Pearson correlation of predicted and real change from control.

    Parameters
    ----------
    predicted, observed, control
        Profiles of the prediction, of the real condition and of the *real* control, which is
        subtracted from both, `(n_genes,)`.
    k
        Only the `k` genes with the largest true change; None takes all genes.

    Returns
    -------
    Correlation in [-1, 1]; NaN if the predicted or the real change is the same in all genes, up
    to the rounding of 32-bit profiles (as for "no change"): a constant correlates with nothing.
    """
    same_length(predicted, observed, control)
    genes = slice(None) if k is None else top_genes(observed, control, k)
    shift, truth = (predicted - control)[genes], (observed - control)[genes]
    shift, truth = shift - shift.mean(), truth - truth.mean()
    sizes = np.linalg.norm(shift), np.linalg.norm(truth)
    if min(sizes) <= ROUNDING * max(np.linalg.norm(control[genes]), np.finfo(float).tiny):
        return float("nan")
    return float(np.clip(shift @ truth / (sizes[0] * sizes[1]), -1.0, 1.0))


def nmse(
    predicted: Floats,
    observed: Floats,
    control: Floats,
    *,
    observed_variance: Floats | float = 0.0,
    control_variance: Floats | float = 0.0,
) -> float:
    """Return the squared error of the mean over that of predicting no change, freed of noise.

    `(|predicted - observed|^2 - noise of observed) / (|observed - control|^2 - noise)`, sums over
    genes. The real condition is known from finitely many cells, which adds its sampling variance
    to each squared error: it is subtracted. The noise of the prediction itself is *not*: a
    prediction answers for it (a replicate of the experiment therefore scores above 0).

    Parameters
    ----------
    predicted, observed, control
        Profiles of the prediction, of the real condition and of its real control, `(n_genes,)`.
    observed_variance
        Sampling variance of each gene of `observed` (variance over cells / number of cells, or
        `pseudobulk_variance`), `(n_genes,)`; 0 does not correct.
    control_variance
        The same of `control`, subtracted below the line only. With 0 the line below is the error
        of emitting the measured control, and doing so scores 1 exactly. With the variance it is
        the squared true effect, as if control had been measured without noise, and emitting the
        measured control scores slightly above 1.

    Returns
    -------
    0 is perfect, 1 is no better than no change; noise may push a good prediction below 0.
    NaN if there is no effect left once its noise is removed.

    Raises
    ------
    ValueError
        If profiles differ in length.
    """
    error, effect = nmse_terms(
        predicted,
        observed,
        control,
        observed_variance=observed_variance,
        control_variance=control_variance,
    )
    return error / effect if effect > 0 else float("nan")


def nmse_terms(
    predicted: Floats,
    observed: Floats,
    control: Floats,
    *,
    predicted_variance: Floats | float = 0.0,
    observed_variance: Floats | float = 0.0,
    control_variance: Floats | float = 0.0,
    kept: NDArray[np.bool_] | None = None,
) -> tuple[float, float]:
    """Return what `nmse` divides: the squared error and the squared effect, freed of noise.

    Of several conditions, divide the sum of the first by the sum of the second: single conditions
    with little effect have ratios of any size.

    Parameters
    ----------
    predicted, observed, control, observed_variance, control_variance
        As in `nmse`.
    predicted_variance
        Sampling variance of each gene of `predicted`, for a prediction of finitely many cells,
        `(n_genes,)` or one number for every gene. Summed over genes it is subtracted from the
        error, but never more of it than of `observed_variance`: a prediction could otherwise buy
        its score with scatter. NaN (a single cell) counts as 0.
    kept
        Genes that count, for error, effect and noise alike, `(n_genes,)`; None takes all.

    Returns
    -------
    `|predicted - observed|^2` and `|observed - control|^2`, sums over genes minus their noise:
    either may be below 0. Control cells that are pasted as prediction, with the variance of
    control, have the same error as effect, unless their variance exceeds that of the condition.

    Raises
    ------
    ValueError
        If profiles differ in length.
    """
    same_length(predicted, observed, control)
    genes = slice(None) if kept is None else kept
    above, real, below = (
        np.broadcast_to(variance, np.shape(observed))[genes]
        for variance in (predicted_variance, observed_variance, control_variance)
    )
    forgiven = min(np.nan_to_num(np.sum(above), nan=0.0), np.sum(real))
    error = np.sum((predicted - observed)[genes] ** 2 - real) - forgiven
    effect = np.sum((control - observed)[genes] ** 2 - real) - np.sum(below)
    return float(error), float(effect)


def same_length(*profiles: Floats) -> None:
    """Raise `ValueError` unless all are vectors of one length."""
    shapes = {np.shape(profile) for profile in profiles}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        msg = f"Found shapes {sorted(shapes)}; profiles must be vectors over the same genes."
        raise ValueError(msg)
