"""The change of the mean: its direction, and its error on the genes of this perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.metrics._mean import ROUNDING, same_length

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Floats

__all__ = ["cosine_delta", "de_weights", "weighted_mse", "weighted_r2"]


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
    same_length(predicted, observed, reference)
    genes = slice(None) if kept is None else kept
    change, truth = (predicted - reference)[genes], (observed - reference)[genes]
    sizes = np.linalg.norm(change), np.linalg.norm(truth)
    if min(sizes) <= ROUNDING * max(np.linalg.norm(reference[genes]), np.finfo(float).tiny):
        return float("nan")
    return float(np.clip(change @ truth / (sizes[0] * sizes[1]), -1.0, 1.0))


def de_weights(scores: Floats, kept: NDArray[np.bool_] | None = None) -> Floats:
    """Return weights of genes from the test of the real cells, `(n_genes,)`.

    Absolute scores, scaled such that the least of them is 0 and the largest 1, squared, and
    divided by their sum: few genes carry most of the weight. The paper takes scores of a t-test
    against all other conditions; the ranks of cells against control give the same kind of number.

    Parameters
    ----------
    scores
        Score of each gene in the real cells, `(n_genes,)`, such as `DifferentialExpression.z`.
    kept
        Genes that count, `(n_genes,)`; the others weigh 0. None takes all.

    Returns
    -------
    Weights that sum to 1; NaN if all scores that count are the same.

    Raises
    ------
    ValueError
        If a score that counts is not finite.

    References
    ----------
    Mejia et al., Diversity by design, 2025.
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
    """Return the squared error, averaged over genes by weight.

    Parameters
    ----------
    predicted, observed
        Profiles, or changes from the same reference, `(n_genes,)`: the error is the same.
    weights
        Weights from `de_weights`, `(n_genes,)`.

    Returns
    -------
    Squared units of the profiles, 0 is perfect; NaN if weights are.

    Raises
    ------
    ValueError
        If lengths differ.

    References
    ----------
    Mejia et al., Diversity by design, 2025.
    """
    same_length(predicted, observed, weights)
    return float(weights @ (predicted - observed) ** 2)


def weighted_r2(predicted: Floats, observed: Floats, weights: Floats) -> float:
    """Return the share of the real change, weighted by gene, that the prediction explains.

    Parameters
    ----------
    predicted, observed
        Changes from the mean of training conditions, `(n_genes,)`: to predict that mean then
        scores at most 0.
    weights
        Weights from `de_weights`, `(n_genes,)`.

    Returns
    -------
    1 is perfect, below 0 is worse than the same change in all genes. NaN if weights are, or if the
    real change does not vary over the genes that carry weight.

    Raises
    ------
    ValueError
        If lengths differ.

    References
    ----------
    Mejia et al., Diversity by design, 2025.
    """
    same_length(predicted, observed, weights)
    centre = weights @ observed
    total = float(weights @ (observed - centre) ** 2)
    if not total > (ROUNDING * centre) ** 2:
        return float("nan")
    return 1.0 - weighted_mse(predicted, observed, weights) / total
