"""Proper scores of predicted populations: sharp and calibrated at once, fair to small samples.

Each rewards the true distribution most. The predicted cells are a sample from a distribution, and
it is the distribution that is judged: the estimators are *fair*, their expectation does not
depend on the number of predicted cells, so that more cells buy no better score.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.metrics._calibration import cells_of_genes
from scvi_perturb.metrics._energy import draw_cells, sum_of_distances

if TYPE_CHECKING:
    from scvi_perturb.metrics._profiles import Floats

__all__ = ["crps", "energy_score", "variogram_score"]


def crps(predicted: Floats, observed: Floats) -> Floats:
    """Return the fair continuous ranked probability score of each gene.

    `E|X - y| - E|X - X'| / 2`, mean over real cells y, where pairs of a predicted cell with
    itself are left out.

    Parameters
    ----------
    predicted, observed
        Cells, `(m, n_genes)` and `(n, n_genes)`, in the same units; at least two predicted.

    Returns
    -------
    Scores in the units of the cells, `(n_genes,)`. Lower is better. The best is not 0 but half
    the mean difference of two real cells: compare with a replicate. Single values may be negative.

    Raises
    ------
    ValueError
        With fewer than two predicted cells or no real one, different numbers of genes or values
        that are not finite.

    References
    ----------
    Gneiting and Raftery, Strictly proper scoring rules, prediction, and estimation, Journal of the
    American Statistical Association 2007. Ferro, Fair scores for ensemble forecasts, Quarterly
    Journal of the Royal Meteorological Society 2014.
    """
    predicted, observed = _population(predicted, observed)
    m, n = len(predicted), len(observed)
    centre = predicted.mean(axis=0)
    predicted, observed = predicted - centre, observed - centre
    within, real = _sums_of_differences(predicted), _sums_of_differences(observed)
    # Pairs of the pooled cells are those within either side and those between.
    between = _sums_of_differences(np.concatenate([predicted, observed])) - within - real
    return between / (n * m) - within / (m * (m - 1))


def energy_score(
    predicted: Floats, observed: Floats, *, max_cells: int | None = None, seed: int | None = 0
) -> float:
    """Return the fair energy score: the continuous ranked probability score of whole cells.

    `E|X - y| - E|X - X'| / 2` with the Euclidean norm, mean over real cells y.

    Parameters
    ----------
    predicted, observed
        Cells as points, `(m, d)` and `(n, d)`, for example principal components; at least two
        predicted.
    max_cells
        At most this many cells of each side, drawn without replacement; None takes all.
    seed
        Seed of that draw.

    Returns
    -------
    The score in the units of the coordinates. Lower is better. The best is half the mean distance
    of two real cells. Twice the difference of two predictions' scores is that of their energy
    distances, if the same cells are drawn.

    Raises
    ------
    ValueError
        With fewer than two predicted cells or no real one, different numbers of coordinates or
        values that are not finite.

    References
    ----------
    Gneiting and Raftery, Strictly proper scoring rules, prediction, and estimation, Journal of the
    American Statistical Association 2007. Ferro, Fair scores for ensemble forecasts, Quarterly
    Journal of the Royal Meteorological Society 2014.
    """
    predicted, observed = _population(predicted, observed)
    rng = np.random.default_rng(seed)
    x, y = (draw_cells(cells, max_cells, rng) for cells in (predicted, observed))
    m, n = len(x), len(y)
    if m < 2:
        msg = f"max_cells={max_cells}; a fair score needs at least 2 predicted cells."
        raise ValueError(msg)
    return sum_of_distances(x, y) / (n * m) - sum_of_distances(x, x) / (2 * m * (m - 1))


def variogram_score(
    predicted: Floats, observed: Floats, *, order: float = 0.5, max_genes: int = 50
) -> float:
    """Return the fair variogram score: are differences between genes of one cell right.

    `(|y_g - y_h|^p - E|X_g - X_h|^p)^2`, mean over real cells y and over pairs of genes g < h. It
    sees wrong correlations, to which the energy score is nearly blind, and not a shift common to
    all genes. The expectation is estimated from the predicted cells, which adds the sampling
    variance of their mean to each square: it is subtracted.

    Parameters
    ----------
    predicted, observed
        Cells, `(m, n_genes)` and `(n, n_genes)`, in the same units; at least two predicted.
    order
        The power p.
    max_genes
        The first so many genes are used: put those that count first, for example the most variable.

    Returns
    -------
    The score in units of the cells to the power `2 p`. Lower is better. The best is not 0 but the
    variance of `|y_g - y_h|^p` between real cells.

    Raises
    ------
    ValueError
        With fewer than two predicted cells or no real one, fewer than two genes, different numbers
        of genes, values that are not finite, or a power that is not positive.

    References
    ----------
    Scheuerer and Hamill, Variogram-based proper scoring rules for probabilistic forecasts of
    multivariate quantities, Monthly Weather Review 2015.
    """
    predicted, observed = _population(predicted, observed)
    n_genes = min(max_genes, predicted.shape[1])
    if order <= 0 or n_genes < 2:
        msg = (
            f"Found order={order}, {predicted.shape[1]} genes and max_genes={max_genes}; the "
            "variogram score needs a positive order and at least 2 genes."
        )
        raise ValueError(msg)
    m, total = len(predicted), 0.0
    for gene in range(n_genes - 1):
        made, real = (
            np.abs(x[:, gene + 1 : n_genes] - x[:, gene, None]) ** order
            for x in (predicted, observed)
        )
        expected, noise = made.mean(axis=0), made.var(axis=0, ddof=1) / m
        total += float((((real - expected) ** 2).mean(axis=0) - noise).sum())
    return total / (n_genes * (n_genes - 1) / 2)


def _population(predicted: Floats, observed: Floats) -> tuple[Floats, Floats]:
    predicted, observed = cells_of_genes(predicted, observed)
    if len(predicted) < 2:
        msg = "Found 1 predicted cell; a fair score needs at least 2."
        raise ValueError(msg)
    return predicted, observed


def _sums_of_differences(values: Floats) -> Floats:
    """Return the sums of `|x_i - x_j|` over pairs i < j of `(n, n_genes)`: `(n_genes,)`."""
    n = len(values)
    return (2.0 * np.arange(n) - n + 1) @ np.sort(values, axis=0)
