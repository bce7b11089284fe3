"""Energy distance between two populations of cells: the whole distribution, not the mean alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA

if TYPE_CHECKING:
    import pandas as pd

    from scvi_perturb.metrics._profiles import Floats, Matrix

__all__ = ["draw_cells", "energy_distance", "energy_ratio", "fit_pca", "sum_of_distances"]

_CHUNK = 2048

#: One value, or one a condition.
Number = TypeVar("Number", float, "np.ndarray", "pd.Series[float]")


def energy_distance(
    predicted: Floats,
    observed: Floats,
    *,
    max_cells: int | None = None,
    seed: int | None = 0,
) -> float:
    """Return the energy distance of two samples, with the *unsquared* Euclidean norm.

    `2 E|X - Y| - E|X - X'| - E|Y - Y'|`, where pairs of a cell with itself are left out (a
    U-statistic): its expectation is 0 if and only if the two populations are the same, whatever
    the numbers of cells, so that it may come out slightly negative. With squared norms it would be
    `2 |mean difference|^2` and see nothing but the means.

    Parameters
    ----------
    predicted, observed
        Cells as points, `(n, d)` and `(m, d)`, for example principal components.
    max_cells
        At most this many cells of each side, drawn without replacement; None takes all.
    seed
        Seed of that draw.

    Returns
    -------
    The distance, in the units of the coordinates.

    Raises
    ------
    ValueError
        With fewer than two cells on a side, or different numbers of coordinates.

    References
    ----------
    Szekely and Rizzo, Energy statistics, Journal of Statistical Planning and Inference 2013.
    """
    if predicted.shape[1] != observed.shape[1]:
        msg = (
            f"Found {predicted.shape[1]} and {observed.shape[1]} coordinates; both samples must "
            "be in the same space: project them with the same `fit_pca`."
        )
        raise ValueError(msg)
    rng = np.random.default_rng(seed)
    x, y = (draw_cells(cells, max_cells, rng) for cells in (predicted, observed))
    n, m = len(x), len(y)
    if min(n, m) < 2:
        msg = f"Found {n} and {m} cells; an unbiased energy distance needs at least 2 on each side."
        raise ValueError(msg)
    between = 2.0 * sum_of_distances(x, y) / (n * m)
    return between - sum(sum_of_distances(z, z) / (len(z) * (len(z) - 1)) for z in (x, y))


def energy_ratio(energy: Number, *, floor: Number, shifted: Number) -> tuple[Number, Number]:
    """Return an energy distance as a share of what lies beyond the mean: the terms of a ratio.

    Over several conditions the ratio is the sum of the numerators over the sum of the
    denominators, so that conditions count by what there is to predict and none is divided by a
    difference close to 0.

    Parameters
    ----------
    energy
        `energy_distance` of predicted and real cells.
    floor
        `energy_distance` of a replicate: of one half of the real cells and the other.
    shifted
        `energy_distance` of shifted control cells (the control cells, moved by the best
        prediction of the mean change) and the real cells: the right mean with the wrong spread.

    Returns
    -------
    `energy - floor` and `shifted - floor`, in the units of the coordinates. Their ratio is 0 for a
    prediction as good as a replicate, 1 for one no better than shifted control cells; noise may
    push it below 0. The denominator is negative by noise where shifted control cells cannot be
    told from a replicate; in a sum over conditions it belongs there all the same.

    References
    ----------
    Szekely and Rizzo, Energy statistics, Journal of Statistical Planning and Inference 2013.
    """
    return energy - floor, shifted - floor


def fit_pca(cells: Matrix, *, n_components: int = 50, seed: int = 0) -> PCA:
    """Fit the space in which cells are compared. Give it *training* cells only.

    Parameters
    ----------
    cells
        Log-normalised training cells, `(n_cells, n_genes)`, dense or sparse (not densified).
    n_components
        Number of components; fewer are taken where cells or genes do not allow for as many.
    seed
        Seed of the solver's start.

    Returns
    -------
    A fitted `sklearn.decomposition.PCA`: use its `transform`.

    Raises
    ------
    ValueError
        If there are fewer than two cells or genes.
    """
    most = min(cells.shape) - 1
    if most < 1:
        msg = f"Found cells of shape {cells.shape}; components need at least 2 cells and 2 genes."
        raise ValueError(msg)
    made = sparse.csr_matrix(cells) if sparse.issparse(cells) else np.asarray(cells)
    pca = PCA(min(n_components, most), svd_solver="arpack", random_state=seed)
    return pca.fit(made.astype(np.float64))


def draw_cells(cells: Floats, max_cells: int | None, rng: np.random.Generator) -> Floats:
    """Return at most `max_cells` of the cells `(n, d)`, drawn without replacement, as float64."""
    cells = np.asarray(cells, dtype=np.float64)
    if max_cells is None or len(cells) <= max_cells:
        return cells
    return cells[rng.choice(len(cells), max_cells, replace=False)]


def sum_of_distances(x: Floats, y: Floats) -> float:
    """Return the sum of the Euclidean distances of all pairs of `(n, d)` and `(m, d)`."""
    starts = range(0, len(x), _CHUNK)
    return float(sum(cdist(x[i : i + _CHUNK], y).sum() for i in starts))
