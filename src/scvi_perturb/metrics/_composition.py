"""Is the mix of cell states right: the proportions of states among predicted and real cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist, jensenshannon
from sklearn.cluster import KMeans

if TYPE_CHECKING:
    from typing import Self

    from numpy.typing import NDArray

    from scvi_perturb.metrics._profiles import Floats

__all__ = ["CellStates", "composition_jsd"]

#: Starts of k-means, of which the best is kept.
_N_STARTS = 4
#: Points that k-means is fitted on at most: the centres of states need no more.
_MAX_POINTS = 20_000
#: Points that are assigned at a time.
_CHUNK = 8192


@dataclass(frozen=True, slots=True)
class CellStates:
    """Cell states as regions of a space: a cell belongs to the state whose centre is nearest.

    Parameters
    ----------
    centres
        Centres of the states, `(n_states, d)`.
    """

    centres: Floats

    @classmethod
    def fit(cls, points: Floats, *, n_states: int = 8, seed: int = 0) -> Self:
        """Find states by k-means. Give it *training* cells only.

        Parameters
        ----------
        points
            Training cells as points, `(n, d)`, for example principal components. Of more than
            20,000 a random 20,000 are used.
        n_states
            Number of states; fewer where there are fewer distinct points.
        seed
            Seed of that draw and of the starts of k-means.

        Raises
        ------
        ValueError
            If there are no points, a coordinate is not finite, or `n_states` is below 1.
        """
        points = _checked(points)
        if n_states < 1:
            msg = f"n_states={n_states}; ask for at least 1 cell state."
            raise ValueError(msg)
        rng = np.random.default_rng(seed)
        if len(points) > _MAX_POINTS:
            points = points[np.sort(rng.choice(len(points), _MAX_POINTS, replace=False))]
        n_states = min(n_states, len(np.unique(points, axis=0)))
        start = int(rng.integers(2**31 - 1))
        means = KMeans(n_states, n_init=_N_STARTS, random_state=start).fit(points)
        return cls(np.asarray(means.cluster_centers_, dtype=np.float64))

    def assign(self, points: Floats) -> NDArray[np.intp]:
        """Return the state of each point `(n, d)`: the index of the nearest centre, `(n,)`.

        Raises
        ------
        ValueError
            If there are no points, one is not finite, or they have other coordinates than the
            states.
        """
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

    Sampling alone keeps it above 0: with n cells on each side and K states that are all present
    it is about `(K - 1) / (4 n ln 2)` in expectation (0.005 for 500 cells and 8 states). Compare
    with a replicate.

    Parameters
    ----------
    predicted_points, observed_points
        Cells in the space of the states, `(n, d)` and `(m, d)`.
    states
        Cell states fitted on training cells.

    Returns
    -------
    Divergence in [0, 1] bits: 0 for the same proportions, 1 if no state holds cells of both.

    Raises
    ------
    ValueError
        If a side has no points, or other coordinates than the states.

    References
    ----------
    Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory
    1991.
    """
    predicted, observed = (states.proportions(x) for x in (predicted_points, observed_points))
    # scipy returns the square root, which is a distance. Rounding may leave [0, 1] slightly.
    return float(np.clip(jensenshannon(predicted, observed, base=2) ** 2, 0.0, 1.0))


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
