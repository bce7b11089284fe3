"""Metrics of the mean response: size and direction of the change from control."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb.metrics._profiles import ROUNDING

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Floats


@checked
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
    return np.argsort(-np.abs(observed - control), kind="stable")[:k]


@checked
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
    _same_length(predicted, observed, control)
    genes = slice(None) if k is None else top_genes(observed, control, k)
    change, truth = (predicted - control)[genes], (observed - control)[genes]
    return _cosine(change - change.mean(), truth - truth.mean(), control[genes])


@checked
def nmse(
    predicted: Floats,
    observed: Floats,
    control: Floats,
    *,
    observed_variance: Floats | float = 0.0,
    control_variance: Floats | float = 0.0,
) -> float:
    """Return the squared error of the mean over that of no change, corrected for noise.

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
    """Return the terms of `nmse`: squared error and squared effect, corrected for noise.

    Of several conditions, divide the sum of the first by the sum of the second: single conditions
    with little effect have ratios of any size. `predicted_variance`, the sampling variance of a
    prediction of finitely many cells, is subtracted from the error too, but in sum never more of
    it than of `observed_variance`: a prediction could otherwise buy its score with scatter. NaN (a
    single cell) counts as 0. `kept` are the genes that count, `(n_genes,)`; None takes all.
    """
    _same_length(predicted, observed, control)
    genes = slice(None) if kept is None else kept
    above, real, below = (
        np.broadcast_to(variance, np.shape(observed))[genes]
        for variance in (predicted_variance, observed_variance, control_variance)
    )
    forgiven = min(np.nan_to_num(np.sum(above), nan=0.0), np.sum(real))
    error = np.sum((predicted - observed)[genes] ** 2 - real) - forgiven
    effect = np.sum((control - observed)[genes] ** 2 - real) - np.sum(below)
    return float(error), float(effect)


@checked
def cosine_delta(
    predicted: Floats,
    observed: Floats,
    reference: Floats,
    kept: NDArray[np.bool_] | None = None,
) -> float:
    """Return the cosine of the predicted and the real change from a reference.

    Parameters
    ----------
    predicted, observed, reference
        Profiles of the prediction, of the real condition and of what both are compared with,
        `(n_genes,)`: the mean of training conditions shows what is specific to this condition;
        control also credits what all conditions share.
    kept
        Genes that count, `(n_genes,)`; None takes all.

    Returns
    -------
    Cosine in [-1, 1]; NaN if the predicted or the real change is 0, up to the rounding of 32-bit
    profiles: no change has no direction.

    Raises
    ------
    ValueError
        If profiles differ in length.

    References
    ----------
    Vinas Torne et al., Systema, Nature Biotechnology 2025.
    """
    _same_length(predicted, observed, reference)
    genes = slice(None) if kept is None else kept
    return _cosine((predicted - reference)[genes], (observed - reference)[genes], reference[genes])


def de_weights(scores: Floats, kept: NDArray[np.bool_] | None = None) -> Floats:
    """Return weights of genes from the test of the real cells (Mejia et al. 2025).

    Absolute scores `(n_genes,)`, such as `DifferentialExpression.z`, of the genes that count
    (`kept`; None takes all), scaled such that the least of them is 0 and the largest 1, squared,
    and divided by their sum: few genes carry most of the weight. NaN if all are the same. The
    paper takes scores of a t-test against all other conditions; the ranks of cells against
    control give the same kind of number.
    """
    sizes = np.abs(np.asarray(scores, dtype=np.float64))
    counts = np.ones(len(sizes), bool) if kept is None else np.asarray(kept, dtype=bool)
    if not np.isfinite(sizes[counts]).all():
        msg = (
            f"Found {np.count_nonzero(~np.isfinite(sizes[counts]))} scores that are not finite; "
            "every gene that counts needs one: pass `differential_expression(...).z`."
        )
        raise ValueError(msg)
    if not counts.any() or np.ptp(sizes[counts]) == 0:
        return np.full(len(sizes), np.nan)
    least = sizes[counts].min()
    weights = np.where(counts, (sizes - least) / np.ptp(sizes[counts]), 0.0) ** 2
    return weights / weights.sum()


def weighted_mse(predicted: Floats, observed: Floats, weights: Floats) -> float:
    """Return the squared error, averaged over genes by weight (Mejia et al. 2025).

    Profiles `(n_genes,)`, or changes from the same reference, and weights from `de_weights`. In
    squared units of the profiles, 0 is perfect; NaN if weights are.
    """
    _same_length(predicted, observed, weights)
    return float(weights @ (predicted - observed) ** 2)


def weighted_r2(predicted: Floats, observed: Floats, weights: Floats) -> float:
    """Return the share of the real change, weighted by gene, that the prediction explains.

    Changes `(n_genes,)` from the mean of training conditions: to predict that mean then scores at
    most 0 (Mejia et al. 2025). 1 is perfect, below 0 is worse than the same change in all genes.
    NaN if weights are, or if the real change does not vary over the genes that carry weight.
    """
    _same_length(predicted, observed, weights)
    centre = weights @ observed
    total = float(weights @ (observed - centre) ** 2)
    if not total > (ROUNDING * centre) ** 2:
        return float("nan")
    return 1.0 - weighted_mse(predicted, observed, weights) / total


@checked
def discrimination(
    predicted: Floats, observed: Floats, *, targeted: NDArray[np.bool_] | None = None
) -> Floats:
    """Return the rank of each prediction's own condition among all real ones.

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


def _cosine(change: Floats, truth: Floats, reference: Floats) -> float:
    """Return the cosine of two changes; NaN if one is rounding of the reference."""
    sizes = np.linalg.norm(change), np.linalg.norm(truth)
    if min(sizes) <= ROUNDING * max(np.linalg.norm(reference), np.finfo(float).tiny):
        return float("nan")
    return float(np.clip(change @ truth / (sizes[0] * sizes[1]), -1.0, 1.0))


def _same_length(*profiles: Floats) -> None:
    shapes = {np.shape(profile) for profile in profiles}
    if len(shapes) > 1 or any(len(shape) != 1 for shape in shapes):
        msg = f"Found shapes {sorted(shapes)}; profiles must be vectors over the same genes."
        raise ValueError(msg)
