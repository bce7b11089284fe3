"""Intervals of a stack from its left-out errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from scipy.optimize import minimize_scalar, nnls
from scipy.special import ndtr, ndtri
from scipy.stats import chi2
from scipy.stats import t as student

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


#: Levels at which the law is kept.
GRID: Final = np.linspace(0.0, 1.0, 201)
#: Degrees of freedom that are tried, of Student's law; the last is nearly normal.
_FREEDOM: Final = (0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0, 100.0)
#: Range of the scale, in units of the expected standard deviation.
_SCALES: Final = (0.03, 5.0)
#: Student's law is a mixture of normals: the quantiles of its precision that stand for it.
_PARTS: Final = (np.arange(40) + 0.5) / 40
#: More errors than these are thinned: the law is one-dimensional.
_MOST: Final = 6_000
#: Where the largest quantile is read.
_TOP: Final = 0.9995


def error_quantiles(error: Floats, variance: Floats, noise: Floats) -> Floats:
    """Return quantiles of `|true error| / sd` at the levels of the grid, `(201,)`.

    What is measured is the true error and the noise of the measurement. True errors of genes have
    heavier tails than noise: most are far smaller than their standard deviation, and the quantiles
    of what was measured would be too wide in the middle. So the law of true errors is taken for
    Student's, with the scale and the degrees of freedom of greatest likelihood when the noise of
    each gene is added (deconvolution). Where there is no noise, quantiles are those measured.

    `error`: Measured less predicted change, any shape. `variance`: Expected variance of the true
    error, same shape; where it is zero nothing is learned. `noise`: Sampling variance of the
    measurement, same shape.

    Reference: Lange, Little and Taylor, Robust statistical modeling using the t distribution, 1989.
    """
    told = variance > 0
    if not told.any():
        return np.zeros(len(GRID))
    scaled, extra = error[told] / np.sqrt(variance[told]), noise[told] / variance[told]
    if not extra.any():
        made: Floats = np.quantile(np.abs(scaled), GRID)
        return made
    step = -(-scaled.size // _MOST)
    freedom, scale = _most_likely(scaled[::step], extra[::step])
    made = scale * student.ppf((1 + np.minimum(GRID, _TOP)) / 2, freedom)
    return made


def _most_likely(scaled: Floats, extra: Floats) -> tuple[float, float]:
    """Return degrees of freedom and scale of Student's law, the noise added to it."""
    tried = []
    for freedom in _FREEDOM:
        # Given its precision, an error is normal: chi-squared by its degrees of freedom.
        widths = freedom / chi2.ppf(_PARTS, freedom)

        def unlikely(log_scale: float, widths: Floats = widths) -> float:
            total = np.exp(2 * log_scale) * widths + extra[:, None]
            density = np.exp(-0.5 * scaled[:, None] ** 2 / total) / np.sqrt(total)
            return -float(np.log(density.mean(axis=1) + 1e-300).sum())

        found = minimize_scalar(unlikely, bounds=np.log(_SCALES), options={"xatol": 0.01})
        tried.append((float(found.fun), freedom, float(np.exp(found.x))))
    _, freedom, scale = min(tried)
    return freedom, scale


#: Levels of central intervals that are reported.
LEVELS: Final = (0.5, 0.8, 0.9, 0.95)
#: Levels of the law at which ranks are taken.
_RANKED: Final = (np.arange(80) + 0.5) / 80
#: Rounds of reweighted least squares.
_N_ROUNDS: Final = 10
#: Of the range in which the end of an interval lies.
_N_HALVINGS: Final = 18
#: Bits that are dropped of a number of 32, whose 23 last are its digits.
_DROPPED: Final = 11
#: Below this share of the largest error, errors count as none.
_NONE: Final = 2.0**-24


@dataclass(frozen=True, slots=True)
class ErrorCovariates:
    """What the variance of an error may depend on, each `(n_rows, n_genes)`.

    `mean`: The prediction. `disagreement`: Variance of the members around it, by their weights.
    `posterior`: Variance that the regression states; zeros where it is not in the stack.
    """

    mean: Floats
    disagreement: Floats
    posterior: Floats

    def some(self, rows: NDArray[np.bool_]) -> ErrorCovariates:
        """Return those of some rows."""
        return ErrorCovariates(self.mean[rows], self.disagreement[rows], self.posterior[rows])

    def stacked(self) -> Floats:
        """Return all covariates and a constant, `(4, n_rows, n_genes)`."""
        ones = np.ones_like(self.mean)
        return np.stack([ones, self.mean**2, self.disagreement, self.posterior])


@dataclass(frozen=True, slots=True)
class ErrorModel:
    """The variance of errors, learned from what was left out.

    It is a sum of covariates with weights that are not negative: a constant, the square of the
    predicted change, the disagreement of members, the regression's own variance. The law of errors
    in units of it is kept as it was found, see `error_quantiles`.

    `weights`: Of the covariates, `(4,)`. `quantiles`: Of `|true error| / sd` over genes and rows of
    each fold, at even levels, `(n_folds, 201)`. `units`: Number of exchangeable units of each fold,
    `(n_folds,)`.
    """

    weights: Floats
    quantiles: Floats
    units: NDArray[np.intp]

    @classmethod
    def fit(
        cls,
        error: Floats,
        noise: Floats,
        covariates: ErrorCovariates,
        *,
        fold: NDArray[np.intp],
        unit: NDArray[np.intp],
    ) -> Self:
        """Fit to left-out errors.

        `error`: Measured less predicted change, `(n_rows, n_genes)`. `noise`: Sampling variance of
        what was measured, same shape; zeros where it is not known. `covariates`: Of the same rows.
        `fold`, `unit`: Of each row, `(n_rows,)`.
        """
        stacked = covariates.stacked()
        weights = _variance_weights(error**2, noise, stacked)
        variance = np.tensordot(weights, stacked, 1)
        folds = [fold == k for k in np.unique(fold)]
        return cls(
            weights,
            np.stack([error_quantiles(error[own], variance[own], noise[own]) for own in folds]),
            np.array([len(np.unique(unit[own])) for own in folds]),
        )

    def std(self, covariates: ErrorCovariates) -> Floats:
        """Return the standard deviation of a normal law as wide as the intervals, on average."""
        ratios = [self.reach(p) for p in LEVELS]
        normal = ndtri((1 + np.array(LEVELS)) / 2)
        return float(np.mean(np.array(ratios) / normal)) * self.scale(covariates)

    def interval(
        self, covariates: ErrorCovariates, centres: Floats, level: float
    ) -> tuple[Floats, Floats]:
        """Return central intervals of predicted changes.

        Around the predictions that the members of each fold make, `(n_folds, n_rows, n_genes)`, the
        law of errors of that fold is put; the ends are quantiles of the mixture (CV+), to 0.05 % of
        their distance from these predictions. Of one prediction for all folds,
        `(1, n_rows, n_genes)`, they are as far on both sides.

        Reference: Barber, Candes, Ramdas and Tibshirani, Predictive inference with the jackknife+,
        Annals of Statistics 2021.
        """
        scale = self.scale(covariates)
        if len(centres) == 1:
            return centres[0] - self.reach(level) * scale, centres[0] + self.reach(level) * scale
        return -self._upper(scale, -centres, level), self._upper(scale, centres, level)

    def _upper(self, scale: Floats, centres: Floats, level: float) -> Floats:
        """Return quantiles of the mixture, by bisection between those of its parts."""
        middle = (self.quantiles[:, 1:] + self.quantiles[:, :-1]) / 2
        tables = [_step_table(law) for law in middle]
        n_atoms = middle.shape[1]
        goal = level * self.units.sum() * n_atoms - 1e-9
        own = middle[:, int(np.ceil(level * n_atoms - 1e-9)) - 1, None, None]
        ends = centres + own * scale
        low, high = ends.min(axis=0), ends.max(axis=0)
        inverse = 1 / np.maximum(scale, 1e-150)
        for _ in range(_N_HALVINGS):
            half = (low + high) / 2
            below = np.zeros(half.shape, np.int64)
            for n_units, (first, count), centre in zip(self.units, tables, centres, strict=True):
                with np.errstate(over="ignore"):
                    place = _leading_bits((half - centre) * inverse) - first
                below += n_units * count.take(place, mode="clip")
            enough = below >= goal
            low, high = np.where(enough, low, half), np.where(enough, half, high)
        return high

    def reach(self, level: float) -> float:
        """Return a quantile of the law of errors, in standard deviations, folds by their units."""
        middle = (self.quantiles[:, 1:] + self.quantiles[:, :-1]) / 2
        weights = np.repeat(self.units, middle.shape[1]).astype(np.float64)
        return float(_weighted_quantile(middle.reshape(-1, 1), weights, level)[0])

    def rank(self, covariates: ErrorCovariates, error: Floats, noise: Floats) -> Floats:
        """Return how likely a smaller error is than each that was measured, noise included.

        `covariates`: Of the rows. `error`, `noise`: Measured less predicted change and the sampling
        variance of the measurement, `(n_rows, n_genes)`. Returns shares in [0, 1], same shape; even
        if the law is right.
        """
        scale, size = self.scale(covariates), np.abs(error)
        blur = np.maximum(np.sqrt(noise), 1e-6 * scale + 1e-12)
        total = np.zeros(error.shape)
        for level in _RANKED:
            true = self.reach(level) * scale
            total += ndtr((size - true) / blur) - ndtr((-size - true) / blur)
        made: Floats = total / len(_RANKED)
        return made

    def scale(self, covariates: ErrorCovariates) -> Floats:
        """Return the root of the variance, `(n_rows, n_genes)`."""
        made: Floats = np.sqrt(np.tensordot(self.weights, covariates.stacked(), 1))
        return made


def _leading_bits(values: Floats) -> NDArray[np.int32]:
    """Return what grows with a number as its logarithm does, by pieces; it is negative below 0."""
    made: NDArray[np.int32] = values.astype(np.float32).view(np.int32) >> _DROPPED
    return made


def _step_table(law: Floats) -> tuple[int, NDArray[np.int64]]:
    """Return how many of sorted values are at most a number, by its leading bits.

    What is returned is the leading bits of the first place, of numbers too small, and the counts.
    Looking up takes a tenth of a search.
    """
    first, last = _leading_bits(law[-1] * np.array([_NONE, 1.0])) + np.array([-1, 1])
    place = np.maximum(_leading_bits(law) - first, 0) + 1
    return int(first), np.bincount(place, minlength=last - first + 1).cumsum()


def _variance_weights(squared: Floats, noise: Floats, covariates: Floats) -> Floats:
    """Return non-negative weights with which covariates add up to squared errors less noise."""
    flat, known = covariates.reshape(len(covariates), -1), noise.ravel()
    size = flat.mean(axis=1)
    told = size > 0
    if not told.all():
        weights = np.zeros(len(covariates))
        weights[told] = _variance_weights(squared, noise, covariates[told])
        return weights
    design, goal = (flat / size[:, None]).T, squared.ravel() - known
    least = max(1e-3 * float(np.maximum(squared - noise, 0).mean()), 1e-12)
    total = np.full(len(goal), max(float(squared.mean()), least))
    weights = np.zeros(len(covariates))
    for _ in range(_N_ROUNDS):
        precise = 1 / total
        gram = design.T @ (design * (precise**2)[:, None])
        across = design.T @ (goal * precise**2)
        root = np.linalg.cholesky(gram + 1e-9 * np.trace(gram) * np.eye(len(gram)))
        weights, _ = nnls(root.T, np.linalg.solve(root, across))
        total = np.maximum(design @ weights, least) + known
    weights = weights / size
    if not np.any(weights * size > 0):
        weights[0] = least
    return weights


def _weighted_quantile(values: Floats, weights: Floats, level: float) -> Floats:
    """Return a quantile of each column of `(n, k)` values with weights `(n,)`."""
    order = np.argsort(values, axis=0)
    ranked = np.take_along_axis(values, order, axis=0)
    total = np.cumsum(weights[order], axis=0)
    place = np.argmax(total >= level * total[-1] - 1e-9, axis=0)
    made: Floats = ranked[place, np.arange(values.shape[1])]
    return made
