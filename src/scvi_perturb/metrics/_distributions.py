"""Metrics of populations of cells: distances, proper scores, structure, composition.

The proper scores reward the true distribution most. Predicted cells are a sample, and it is the
distribution that is judged: the estimators are *fair*, their expectation does not depend on the
number of predicted cells, so that more cells buy no better score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist, jensenshannon
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from scvi_perturb._checks import checked
from scvi_perturb._core import drawn_seed
from scvi_perturb.metrics._calibration import cells_of_genes
from scvi_perturb.metrics._profiles import ROUNDING, chosen_genes, gene_moments, zero_fraction

if TYPE_CHECKING:
    from typing import Self

    import pandas as pd
    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Floats, Matrix

#: Logarithms of ratios of variances are kept within plus and minus this (a ratio of a million),
#: so that cells without any variance have a number, and a bad one.
MAX_LOG_RATIO = float(np.log(1e6))

_CHUNK = 2048
#: Starts of k-means, of which the best is kept.
_N_STARTS = 4
#: Points that k-means is fitted on at most: the centres of states need no more.
_MAX_POINTS = 20_000

#: One value, or one a condition.
Number = TypeVar("Number", float, "np.ndarray", "pd.Series[float]")


@checked
def fit_pca(cells: Matrix, *, n_components: int = 50, seed: int | None = 0) -> PCA:
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
    pca = PCA(min(n_components, most), svd_solver="arpack", random_state=drawn_seed(seed))
    return pca.fit(made.astype(np.float64))


@checked
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
    x, y = (_draw_cells(cells, max_cells, rng) for cells in (predicted, observed))
    n, m = len(x), len(y)
    if min(n, m) < 2:
        msg = f"Found {n} and {m} cells; an unbiased energy distance needs at least 2 on each side."
        raise ValueError(msg)
    between = 2.0 * _sum_of_distances(x, y) / (n * m)
    return between - sum(_sum_of_distances(z, z) / (len(z) * (len(z) - 1)) for z in (x, y))


@checked
def energy_ratio(energy: Number, *, floor: Number, shifted: Number) -> tuple[Number, Number]:
    """Return an energy distance relative to shifted controls and replicate, as terms of a ratio.

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
    """
    return energy - floor, shifted - floor


@checked
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
    predicted, observed = _scored_cells(predicted, observed)
    m, n = len(predicted), len(observed)
    centre = predicted.mean(axis=0)
    predicted, observed = predicted - centre, observed - centre
    within, real = _sums_of_differences(predicted), _sums_of_differences(observed)
    # Pairs of the pooled cells are those within either side and those between.
    between = _sums_of_differences(np.concatenate([predicted, observed])) - within - real
    return between / (n * m) - within / (m * (m - 1))


@checked
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
        As for `crps`; references are given there too.
    """
    predicted, observed = _scored_cells(predicted, observed)
    rng = np.random.default_rng(seed)
    x, y = (_draw_cells(cells, max_cells, rng) for cells in (predicted, observed))
    m, n = len(x), len(y)
    if m < 2:
        msg = f"max_cells={max_cells}; a fair score needs at least 2 predicted cells."
        raise ValueError(msg)
    return _sum_of_distances(x, y) / (n * m) - _sum_of_distances(x, x) / (2 * m * (m - 1))


def variogram_score(
    predicted: Floats, observed: Floats, *, order: float = 0.5, max_genes: int = 50
) -> float:
    """Return the fair variogram score, which compares differences between genes within a cell.

    `(|y_g - y_h|^p - E|X_g - X_h|^p)^2` with p the `order`, mean over real cells y and over pairs
    of the first `max_genes` genes. It sees wrong correlations, to which the energy score is nearly
    blind, and not a shift common to all genes. The expectation is estimated from the predicted
    cells, which adds the sampling variance of their mean to each square: it is subtracted. In
    units of the cells to the power `2 p`; lower is better, and the best is not 0 but the variance
    of `|y_g - y_h|^p` between real cells (Scheuerer and Hamill, Monthly Weather Review 2015).
    """
    predicted, observed = _scored_cells(predicted, observed)
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


def variance_ratio(
    predicted: Matrix, observed: Matrix, *, genes: NDArray[np.intp] | None = None
) -> float:
    """Return the median over genes of predicted over real variance between cells.

    `predicted`, `observed`: Log-normalised cells, `(n, n_genes)` and `(m, n_genes)`, dense or
    sparse. `genes`: Indices of the genes to use, for example `top_genes`; None takes all. Genes
    without variance in the real cells are left out. Returns 1 is right; below 1 the predicted cells
    are too alike. NaN if no gene varies in the real cells.
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
    """Return the log ratio of predicted to real variance between cells, for each chosen gene.

    0 is right, below 0 the predicted cells are too alike. Kept within plus and minus
    `MAX_LOG_RATIO`: a gene that varies in the real cells but not in the predicted ones has -13.8,
    not minus infinity, and so stays in a median or a mean. NaN where the real cells do not vary.
    Sampling alone gives a normal gene a standard deviation of about `sqrt(2 / n + 2 / m)` (0.09
    for 500 cells each), a skewed gene more.
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
    """Return the interquartile range over genes of `log_variance_ratios`; 0 is perfect.

    A factor common to all genes moves the median of the ratios and not their range; the range is
    wide if some genes vary too much and others too little. A gene without any variance in the
    predicted cells could be off by any factor: it counts as the lowest ratio in the lower
    quartile and as the highest in the upper one. Sampling alone gives about 0.12 for normal genes
    and 500 cells each; NaN if no gene varies in the real cells.
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
    """Return the Pearson correlation between predicted and real gene-gene correlations.

    Correlations are shrunken towards 0 by the share of them that is sampling noise (Schaefer and
    Strimmer 2005). One share for all pairs leaves their Pearson correlation as it is, up to the
    case that matters: correlations that are noise altogether become 0 and agree with nothing.
    Noise that is left lowers the agreement of few cells, also that of a replicate, with which it
    is to be compared. At most `max_genes` genes that vary in the real cells, the most variable.

    1 is right. A gene that does not vary in the predicted cells correlates with nothing (0); if
    none does, or no pair correlates beyond noise, the agreement is 0. NaN if fewer than three
    genes vary in the real cells, or all of their correlations are noise: both depend on the real
    cells alone.
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

    Its floor is not 0 but what sampling alone gives: compare with a replicate.
    """
    _same_genes(predicted, observed)
    return float(np.abs(zero_fraction(predicted) - zero_fraction(observed)).mean())


@checked
@dataclass(frozen=True, slots=True)
class CellStates:
    """Cell states: each cell belongs to the state with the nearest centre.

    `centres`: Centres of the states, `(n_states, d)`.
    """

    centres: Floats

    @classmethod
    def fit(cls, points: Floats, *, n_states: int = 8, seed: int | None = 0) -> Self:
        """Find at most `n_states` states of *training* cells `(n, d)` by k-means.

        Of more than 20,000 cells a random 20,000 are used; there are fewer states where there are
        fewer distinct points.
        """
        points = _checked(points)
        rng = np.random.default_rng(seed)
        if len(points) > _MAX_POINTS:
            points = points[np.sort(rng.choice(len(points), _MAX_POINTS, replace=False))]
        n_states = min(n_states, len(np.unique(points, axis=0)))
        start = int(rng.integers(2**31 - 1))
        means = KMeans(n_states, n_init=_N_STARTS, random_state=start).fit(points)
        return cls(np.asarray(means.cluster_centers_, dtype=np.float64))

    def assign(self, points: Floats) -> NDArray[np.intp]:
        """Return the state of each point `(n, d)`: the index of the nearest centre, `(n,)`."""
        points = _checked(points)
        if points.shape[1] != self.centres.shape[1]:
            msg = (
                f"Found points of {points.shape[1]} coordinates and cell states of "
                f"{self.centres.shape[1]}; project both with the same `fit_pca`."
            )
            raise ValueError(msg)
        parts = (points[i : i + _CHUNK] for i in range(0, len(points), _CHUNK))
        nearest = [cdist(part, self.centres, "sqeuclidean").argmin(axis=1) for part in parts]
        return np.concatenate(nearest)

    def proportions(self, points: Floats) -> Floats:
        """Return the share of points `(n, d)` in each state, `(n_states,)`, which sum to 1."""
        counts = np.bincount(self.assign(points), minlength=len(self.centres))
        return counts / counts.sum()


def composition_jsd(predicted_points: Floats, observed_points: Floats, states: CellStates) -> float:
    """Return the Jensen-Shannon divergence of the proportions of cell states, in bits.

    Of cells in the space of the states, `(n, d)` and `(m, d)`: 0 for the same proportions, 1 if no
    state holds cells of both (Lin 1991). Sampling alone keeps it above 0: with n cells on each
    side and K states that are all present it is about `(K - 1) / (4 n ln 2)` in expectation (0.005
    for 500 cells and 8 states). Compare with a replicate.
    """
    predicted, observed = (states.proportions(x) for x in (predicted_points, observed_points))
    # scipy returns the square root, which is a distance. Rounding may leave [0, 1] slightly.
    return float(np.clip(jensenshannon(predicted, observed, base=2) ** 2, 0.0, 1.0))


def _draw_cells(cells: Floats, max_cells: int | None, rng: np.random.Generator) -> Floats:
    """Return at most `max_cells` of the cells `(n, d)`, drawn without replacement, as float64."""
    cells = np.asarray(cells, dtype=np.float64)
    if max_cells is None or len(cells) <= max_cells:
        return cells
    return cells[rng.choice(len(cells), max_cells, replace=False)]


def _sum_of_distances(x: Floats, y: Floats) -> float:
    """Return the sum of the Euclidean distances of all pairs of `(n, d)` and `(m, d)`."""
    starts = range(0, len(x), _CHUNK)
    return float(sum(cdist(x[i : i + _CHUNK], y).sum() for i in starts))


def _scored_cells(predicted: Floats, observed: Floats) -> tuple[Floats, Floats]:
    predicted, observed = cells_of_genes(predicted, observed)
    if len(predicted) < 2:
        msg = "Found 1 predicted cell; a fair score needs at least 2."
        raise ValueError(msg)
    return predicted, observed


def _sums_of_differences(values: Floats) -> Floats:
    """Return the sums of `|x_i - x_j|` over pairs i < j of `(n, n_genes)`: `(n_genes,)`."""
    n = len(values)
    return (2.0 * np.arange(n) - n + 1) @ np.sort(values, axis=0)


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


def _checked(points: Floats) -> Floats:
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[0] < 1:
        msg = f"Found points of shape {points.shape}; give (n, d) with at least 1 point."
        raise ValueError(msg)
    if not np.isfinite(points).all():
        n_wrong = int((~np.isfinite(points).all(axis=1)).sum())
        msg = f"{n_wrong} of {len(points)} points are not finite; mend or leave out those cells."
        raise ValueError(msg)
    return points
