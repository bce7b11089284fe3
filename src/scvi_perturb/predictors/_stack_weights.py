"""Weights of a stack: not negative, summing to one, of least squared error on what is left out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.optimize import nnls

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

__all__ = ["moments_of", "stack_weights"]

#: Bootstraps over which weights are averaged.
_N_BOOTSTRAP: Final = 50
#: Units that the prior counts as.
_N_PRIOR: Final = 20
#: Weight of the constraint that weights sum to one, in units of the errors.
_CONSTRAINT: Final = 1e4
#: Ridge, by the mean diagonal: tells apart members that predict alike.
_RIDGE: Final = 1e-4


def moments_of(
    truth: Floats, predicted: Floats, unit: NDArray[np.intp]
) -> tuple[Floats, Floats, Floats]:
    """Return what least squares needs to know, for each unit.

    Parameters
    ----------
    truth
        Left-out changes, `(n_rows, n_genes)`.
    predicted
        What each member says of them, `(n_members, n_rows, n_genes)`.
    unit
        Exchangeable unit of each row, 0 to n_units - 1, `(n_rows,)`.

    Returns
    -------
    Products of members, `(n_units, n_members, n_members)`; of members with the truth,
    `(n_units, n_members)`; and of the truth, `(n_units,)`.
    """
    n_units, n_members = int(unit.max()) + 1, len(predicted)
    between = np.zeros((n_units, n_members, n_members))
    across, own = np.zeros((n_units, n_members)), np.zeros(n_units)
    for i in range(n_units):
        rows = unit == i
        flat = predicted[:, rows].reshape(n_members, -1)
        between[i] = flat @ flat.T
        across[i] = flat @ truth[rows].ravel()
        own[i] = (truth[rows] ** 2).sum()
    return between, across, own


def stack_weights(
    between: Floats, across: Floats, prior: Floats, *, seed: int | None = 0
) -> Floats:
    """Return the weights of members, `(n_members,)`.

    They minimise the squared error on left-out units, under `w >= 0` and `sum(w) = 1` (stacked
    regressions). With few units the best corner of the simplex is chance: so weights are drawn to a
    prior, as if twenty more units had been as that says, and averaged over bootstraps of the units.

    Parameters
    ----------
    between, across
        See `moments_of`.
    prior
        Weights believed before, `(n_members,)`, that sum to one.
    seed
        Seed of the bootstraps.

    References
    ----------
    Breiman, Stacked regressions, Machine Learning 1996.
    """
    n_units = len(across)
    random = np.random.default_rng(seed)
    counts = random.multinomial(n_units, np.full(n_units, 1 / n_units), _N_BOOTSTRAP)
    found = []
    for count in counts:
        gram = np.tensordot(count, between, 1)
        goal = np.tensordot(count, across, 1) + _N_PRIOR / n_units * (gram @ prior)
        found.append(_solve((1 + _N_PRIOR / n_units) * gram, goal))
    weights: Floats = np.mean(found, axis=0)
    weights[weights < 1e-3] = 0.0
    return weights / weights.sum()


def _solve(between: Floats, across: Floats) -> Floats:
    n = len(across)
    scale = max(float(np.diag(between).mean()), 1e-300)
    root = np.linalg.cholesky(between / scale + _RIDGE * np.eye(n))
    goal = np.linalg.solve(root, across / scale)
    design = np.vstack([root.T, np.full((1, n), _CONSTRAINT)])
    weights, _ = nnls(design, np.append(goal, _CONSTRAINT))
    made: Floats = weights / max(weights.sum(), 1e-300)
    return made
