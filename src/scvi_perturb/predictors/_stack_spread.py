"""How far a stack may be off: a variance for each gene, and how errors compare with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from scipy.optimize import nnls
from scipy.special import ndtr, ndtri

from scvi_perturb.predictors._stack_law import law_quantiles

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["LEVELS", "Clues", "Spread"]

#: Levels of central intervals that are reported.
LEVELS: Final = (0.5, 0.8, 0.9, 0.95)
#: Levels of the law at which ranks are taken.
_RANKED: Final = (np.arange(80) + 0.5) / 80
#: Rounds of reweighted least squares.
_N_ROUNDS: Final = 10
#: Of the range in which the end of an interval lies.
_N_HALVINGS: Final = 45


@dataclass(frozen=True, slots=True)
class Clues:
    """What the variance of an error may depend on, each `(n_rows, n_genes)`.

    Parameters
    ----------
    mean
        The prediction.
    disagreement
        Variance of the members around it, by their weights.
    posterior
        Variance that the regression states; zeros where it is not in the stack.
    """

    mean: Floats
    disagreement: Floats
    posterior: Floats

    def some(self, rows: NDArray[np.bool_]) -> Clues:
        """Return those of some rows."""
        return Clues(self.mean[rows], self.disagreement[rows], self.posterior[rows])

    def stacked(self) -> Floats:
        """Return all clues and a constant, `(4, n_rows, n_genes)`."""
        ones = np.ones_like(self.mean)
        return np.stack([ones, self.mean**2, self.disagreement, self.posterior])


@dataclass(frozen=True, slots=True)
class Spread:
    """The variance of errors, learned from what was left out.

    It is a sum of clues with weights that are not negative: a constant, the square of the predicted
    change, the disagreement of members, the regression's own variance. What the law of errors in
    units of it is, is kept as it was found, see `law_quantiles`.

    Parameters
    ----------
    weights
        Of the clues, `(4,)`.
    quantiles
        Of `|true error| / sd` over genes and rows of each fold, at even levels, `(n_folds, 201)`.
    units
        Number of exchangeable units of each fold, `(n_folds,)`.
    """

    weights: Floats
    quantiles: Floats
    units: NDArray[np.intp]

    @classmethod
    def fit(
        cls,
        error: Floats,
        noise: Floats,
        clues: Clues,
        *,
        fold: NDArray[np.intp],
        unit: NDArray[np.intp],
    ) -> Self:
        """Fit to left-out errors.

        Parameters
        ----------
        error
            Measured less predicted change, `(n_rows, n_genes)`.
        noise
            Sampling variance of what was measured, same shape; zeros where it is not known.
        clues
            Of the same rows.
        fold, unit
            Of each row, `(n_rows,)`.
        """
        stacked = clues.stacked()
        weights = _variance_weights(error**2, noise, stacked)
        variance = np.tensordot(weights, stacked, 1)
        folds = [fold == k for k in np.unique(fold)]
        return cls(
            weights,
            np.stack([law_quantiles(error[own], variance[own], noise[own]) for own in folds]),
            np.array([len(np.unique(unit[own])) for own in folds]),
        )

    def std(self, clues: Clues) -> Floats:
        """Return the standard deviation of a normal law as wide as the intervals, on average."""
        ratios = [self.reach(p) for p in LEVELS]
        normal = ndtri((1 + np.array(LEVELS)) / 2)
        return float(np.mean(np.array(ratios) / normal)) * self.scale(clues)

    def interval(self, clues: Clues, centres: Floats, level: float) -> tuple[Floats, Floats]:
        """Return central intervals of predicted changes.

        Around the predictions that the members of each fold make, `(n_folds, n_rows, n_genes)`, the
        law of errors of that fold is put; the ends are quantiles of the mixture (CV+).

        References
        ----------
        Barber, Candes, Ramdas and Tibshirani, Predictive inference with the jackknife+, Annals of
        Statistics 2021.
        """
        scale = self.scale(clues)
        return -self._upper(scale, -centres, level), self._upper(scale, centres, level)

    def _upper(self, scale: Floats, centres: Floats, level: float) -> Floats:
        """Return quantiles of the mixture, by bisection: sorting it is ten times slower."""
        middle = (self.quantiles[:, 1:] + self.quantiles[:, :-1]) / 2
        goal = level * self.units.sum() * middle.shape[1] - 1e-9
        width = np.maximum(scale, 1e-150)
        low, high = centres.min(axis=0), centres.max(axis=0) + middle.max() * scale
        for _ in range(_N_HALVINGS):
            half = (low + high) / 2
            below = np.zeros(half.shape, np.int64)
            for n_units, law, centre in zip(self.units, middle, centres, strict=True):
                below += n_units * np.searchsorted(law, (half - centre) / width, side="right")
            enough = below >= goal
            low, high = np.where(enough, low, half), np.where(enough, half, high)
        return high

    def reach(self, level: float) -> float:
        """Return a quantile of the law of errors, in standard deviations, folds by their units."""
        middle = (self.quantiles[:, 1:] + self.quantiles[:, :-1]) / 2
        weights = np.repeat(self.units, middle.shape[1]).astype(np.float64)
        return float(_weighted_quantile(middle.reshape(-1, 1), weights, level)[0])

    def rank(self, clues: Clues, error: Floats, noise: Floats) -> Floats:
        """Return how likely a smaller error is than each that was measured, noise included.

        Parameters
        ----------
        clues
            Of the rows.
        error, noise
            Measured less predicted change and the sampling variance of the measurement,
            `(n_rows, n_genes)`.

        Returns
        -------
        numpy.ndarray
            Shares in [0, 1], same shape; even if the law is right.
        """
        scale, size = self.scale(clues), np.abs(error)
        blur = np.maximum(np.sqrt(noise), 1e-6 * scale + 1e-12)
        total = np.zeros(error.shape)
        for level in _RANKED:
            true = self.reach(level) * scale
            total += ndtr((size - true) / blur) - ndtr((-size - true) / blur)
        made: Floats = total / len(_RANKED)
        return made

    def scale(self, clues: Clues) -> Floats:
        """Return the root of the variance, `(n_rows, n_genes)`."""
        made: Floats = np.sqrt(np.tensordot(self.weights, clues.stacked(), 1))
        return made


def _variance_weights(squared: Floats, noise: Floats, clues: Floats) -> Floats:
    """Return non-negative weights of clues such that they add up to squared errors less noise.

    Least squares by the inverse of the squared variance, in rounds.
    """
    flat, known = clues.reshape(len(clues), -1), noise.ravel()
    size = flat.mean(axis=1)
    told = size > 0
    if not told.all():
        weights = np.zeros(len(clues))
        weights[told] = _variance_weights(squared, noise, clues[told])
        return weights
    design, goal = (flat / size[:, None]).T, squared.ravel() - known
    least = max(1e-3 * float(np.maximum(squared - noise, 0).mean()), 1e-12)
    total = np.full(len(goal), max(float(squared.mean()), least))
    weights = np.zeros(len(clues))
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
