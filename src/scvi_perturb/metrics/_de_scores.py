"""Whether a prediction finds the genes that differ, their direction and their fold change."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.metrics._differential import DifferentialExpression

__all__ = ["de_direction_yield", "de_jaccard", "de_lfc_nmae"]

#: With fewer significant genes the error of fold changes is that of a handful at the threshold.
_FEWEST = 10


def de_direction_yield(
    predicted: DifferentialExpression, observed: DifferentialExpression, kept: NDArray[np.bool_]
) -> float:
    """Return the share of significant genes whose direction is right.

    `right / max(n_predicted, n_observed)`: genes called in the prediction whose real fold change
    has the same sign, over the larger number of calls. Calling too many genes costs through the
    first, too few through the second. Whether the gene is significant in the real cells does not
    matter for its sign to be right. Predicted calls of genes without a real direction (a fold
    change of exactly 0) do not count.

    Parameters
    ----------
    predicted, observed
        Tests of predicted and of real cells against the same real control cells.
    kept
        Genes that count, `(n_genes,)`: without those that the perturbation targets.

    Returns
    -------
    A share in [0, 1], 1 is best; NaN if no gene is significant in the real cells, whatever was
    predicted.

    References
    ----------
    Virtual Cell Challenge 2026 ("direction fidelity yield", raw).
    """
    ours, real = (test.log_fold_change for test in (predicted, observed))
    called = predicted.significant & kept & (np.nan_to_num(real) != 0)
    right = called & (np.sign(ours) == np.sign(real))
    n_observed = (observed.significant & kept).sum()
    if not n_observed:
        return float("nan")
    return float(right.sum() / max(called.sum(), n_observed))


def de_jaccard(
    predicted: DifferentialExpression, observed: DifferentialExpression, kept: NDArray[np.bool_]
) -> float:
    """Return the size of the intersection of significant genes over that of their union.

    Parameters
    ----------
    predicted, observed, kept
        As in `de_direction_yield`.

    Returns
    -------
    A share in [0, 1]; 1 if neither side has significant genes: both say that nothing changes.

    References
    ----------
    Jaccard, New Phytologist 1912.
    """
    ours, real = predicted.significant & kept, observed.significant & kept
    union = (ours | real).sum()
    return float((ours & real).sum() / union) if union else 1.0


def de_lfc_nmae(
    predicted: DifferentialExpression, observed: DifferentialExpression, kept: NDArray[np.bool_]
) -> float:
    """Return the absolute error of log fold changes over that of predicting none.

    `sum |predicted - real| / sum |real|` over genes that are significant in the real cells. A
    predicted fold change that is not finite counts as no change, so that no gene can be evaded.

    Parameters
    ----------
    predicted, observed, kept
        As in `de_direction_yield`.

    Returns
    -------
    0 is perfect, 1 is no better than no change; not bounded above. NaN with fewer than 10
    significant genes, which the real cells alone decide.

    References
    ----------
    Virtual Cell Challenge 2026.
    """
    real = observed.log_fold_change
    genes = observed.significant & kept & np.isfinite(real)
    size = np.abs(real[genes]).sum()
    if genes.sum() < _FEWEST or size == 0:
        return float("nan")
    ours = np.nan_to_num(predicted.log_fold_change[genes], nan=0.0, posinf=0.0, neginf=0.0)
    return float(np.abs(ours - real[genes]).sum() / size)
