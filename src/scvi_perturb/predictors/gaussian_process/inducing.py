"""A Gaussian process over more rows than one eigendecomposition can take: inducing rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

import numpy as np
from scipy import sparse
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpstrf

from scvi_perturb.predictors.gaussian_process.kernel import chunks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.predictors.gaussian_process.kernel import (
        ConditionKernel,
        Fitted,
        Points,
        Theta,
    )
    from scvi_perturb.predictors.gaussian_process.signal import Outputs

    Floats: TypeAlias = NDArray[np.float64]


#: Up to so many rows one eigendecomposition is made, in 11 s of one core and 0.5 GB. More inducing
#: rows cost the square of their number: at 8,000 rows 2,000 of them take half of the time of one
#: decomposition and err 0.6 % more, 1,000 2.3 % (`benchmarks.scale`).
MOST_EXACT: Final = 4_000
#: Inducing rows at most, and the rows drawn at random that they are chosen from.
_N_INDUCING: Final = 2_000
_N_CANDIDATES: Final = 4_000
#: Below this share of the largest variance a further inducing row is rounding.
_ROUNDING: Final = 1e-8
#: Rows compared at a time.
_CHUNK: Final = 256


class Compared(NamedTuple):
    """What is asked, compared with training.

    `inducing`: With the inducing rows, in units of their independent parts, `(n, m)`. `rows`:
    Training rows that share a name with what is asked. `own`: What is left of the covariance with
    these, in their turned coordinates, `(n, n_rows)`.
    """

    inducing: Floats
    rows: NDArray[np.intp]
    own: Floats


@dataclass(frozen=True, slots=True)
class Inducing:
    """The process with what perturbations share going by inducing rows (PIC).

    The kernel is that of names (`components`), and a smooth part `S`. Between different
    perturbations `S` is that of `m` inducing rows, `Q = S_nm S_mm^-1 S_mn`; between rows of the
    same perturbation, its doses and contexts, nothing is left out. So training has the covariance
    `Q + B + r D` with `B` of one block a perturbation, whose inverse for every `r` follows from an
    eigendecomposition of each block and one Cholesky factor of `(m, m)` a ratio. Where `S` has rank
    `m` at most, as that of products of `m - 1` features, this is exact. Inducing rows are those of
    largest variance given the ones before (pivoted Cholesky), among rows drawn at random. All is in
    double precision.

    `kernel`, `theta`, `unit`: As of the whole process. `smooth`: Hyperparameters of `S`: without
    `components`, unless a name is in several combinations; then that is of `S` too. `points`: Of
    training. `inducing`: Points that the rest goes by. `lower`: Cholesky factor of `S_mm`. `turn`:
    `D^-1/2` times the eigenvectors of `D^-1/2 B D^-1/2`, `(n, n)`. `values`: Its eigenvalues.
    `low`: Turned `S_nm` by `lower`, `(n, m)`. `rotated`: Turned outputs, `(n, n_outputs)`.
    `ratios`, `roots`: Ratios of noise to signal, and the Cholesky factor for each, `(n_ratios, m,
    m)`.

    Reference: Snelson and Ghahramani, Local and global sparse Gaussian process approximations,
    AISTATS 2007.
    """

    kernel: ConditionKernel
    theta: dict[str, float]
    smooth: dict[str, float]
    unit: float
    points: Points
    inducing: Points
    lower: Floats
    turn: sparse.csr_matrix
    values: Floats
    low: Floats
    rotated: Floats
    ratios: Floats
    roots: Floats

    @classmethod
    def of(cls, kernel: ConditionKernel, points: Points, outputs: Outputs, fitted: Fitted) -> Self:
        """Fit outputs of all points with hyperparameters and signals that were chosen on some."""
        theta, unit = fitted.theta, fitted.unit
        blocks = _blocks(points)
        n_names = sum(len(name) for name in blocks)
        apart = n_names == len({part.name for part in points.parts})
        smooth = theta | {"components": 0.0} if apart else theta
        inducing, lower = _chosen(kernel, points, smooth, unit)
        shared = np.concatenate([
            solve_triangular(lower, _smooth(kernel, inducing, points.some(rows), smooth, unit),
                             lower=True).T
            for rows in chunks(len(points.times), 4 * _CHUNK)
        ])  # fmt: skip
        root = np.sqrt(outputs.row_noise)
        turn, values = _turned(
            kernel, points, [*blocks.values()], theta=theta, unit=unit, shared=shared, root=root
        )
        low, rotated = turn.T @ shared, turn.T @ outputs.values
        del shared
        ratios = np.unique(fitted.signal.ratios)
        roots = np.stack([_root(low, values + ratio) for ratio in ratios])
        return cls(kernel, theta, smooth, unit, points, inducing, lower, turn, values, low, rotated,
                   ratios, roots)  # fmt: skip

    def weights(self, ratios: Floats) -> Floats:
        """Return `(Q + B + r D)^-1 Y` with the ratio of each output, turned, `(n, n_outputs)`."""
        made = np.empty_like(self.rotated)
        for ratio in np.unique(ratios):
            here = ratios == ratio
            inverse = 1 / (self.values + ratio)[:, None]
            own = inverse * self.rotated[:, here]
            solved = cho_solve((self._root(ratio), True), self.low.T @ own)
            made[:, here] = own - inverse * (self.low @ solved)
        return made

    def compared(self, points: Points) -> Compared:
        """Compare what is asked with training."""
        names = {part.name for part in points.parts}
        held = [i for i, part in enumerate(self.points.parts) if part.name in names]
        rows = np.unique(self.points.holds[:, held].nonzero()[0])
        across = _smooth(self.kernel, self.inducing, points, self.smooth, self.unit)
        inducing = solve_triangular(self.lower, across, lower=True).T
        if not len(rows):
            return Compared(inducing, rows, np.zeros((len(inducing), 0)))
        related = self.points.some(rows)
        cross = self.kernel.between(points, related)
        whole, smooth = cross(self.theta) / self.unit, cross(self.smooth) / self.unit
        number = {name: i for i, name in enumerate(dict.fromkeys(related.names))}
        asked = np.array([number.get(name, -1) for name in points.names])
        same = asked[:, None] == np.array([number[name] for name in related.names])
        own = (whole - np.where(same, 0.0, smooth)) @ self.turn[rows][:, rows]
        own -= np.where(same, inducing @ self.low[rows].T, 0.0)
        return Compared(inducing, rows, own)

    def predicted(self, asked: Compared, weights: Floats) -> Floats:
        """Return the mean of outputs, `(n_asked, n_outputs)`."""
        made: Floats = asked.inducing @ (self.low.T @ weights) + asked.own @ weights[asked.rows]
        return made

    def explained(self, asked: Compared, ratios: Floats) -> Floats:
        """Return by how much variance falls for each ratio, `(n_asked, n_ratios)`."""
        made = np.empty((len(asked.inducing), len(ratios)))
        for i, ratio in enumerate(ratios):
            own, rest = self._parts(asked, ratio)
            made[:, i] = (asked.inducing**2).sum(axis=1) + (own**2).sum(axis=1)
            made[:, i] -= (rest**2).sum(axis=0)
        return made

    def explained_jointly(self, asked: Compared, ratio: float) -> Floats:
        """Return by how much covariance falls, `(n_asked, n_asked)`."""
        own, rest = self._parts(asked, ratio)
        made: Floats = asked.inducing @ asked.inducing.T + own @ own.T - rest.T @ rest
        return made

    def _parts(self, asked: Compared, ratio: float) -> tuple[Floats, Floats]:
        # V V' + F L F' - (V - h) M (V - h)', with h = F L low, M = (I + low' L low)^-1
        spread = self.values[asked.rows] + ratio
        left = asked.inducing - (asked.own / spread) @ self.low[asked.rows]
        rest = solve_triangular(self._root(ratio), left.T, lower=True)
        return asked.own / np.sqrt(spread), rest

    def _root(self, ratio: float) -> Floats:
        known = np.flatnonzero(self.ratios == ratio)
        found: Floats = self.roots[known[0]] if len(known) else _root(self.low, self.values + ratio)
        return found


def _root(low: Floats, spread: Floats) -> Floats:
    scaled = low / np.sqrt(spread)[:, None]
    within = scaled.T @ scaled
    within[np.diag_indices(len(within))] += 1.0
    return np.asarray(np.linalg.cholesky(within), np.float64)


def _blocks(points: Points) -> dict[tuple[str, ...], list[int]]:
    """Return the rows of each set of names, with all doses, kinds, times and contexts."""
    found: dict[tuple[str, ...], list[int]] = {}
    for row, name in enumerate(points.names):
        found.setdefault(name, []).append(row)
    return found


def _smooth(
    kernel: ConditionKernel, left: Points, right: Points, theta: Theta, unit: float
) -> Floats:
    return kernel.between(left, right)(theta) / unit


def _chosen(
    kernel: ConditionKernel, points: Points, smooth: Theta, unit: float
) -> tuple[Points, Floats]:
    """Return inducing points and the Cholesky factor of the smooth kernel between them."""
    order = np.random.default_rng(0).permutation(len(points.times))[:_N_CANDIDATES]
    some = points.some(order)
    within = _smooth(kernel, some, some, smooth, unit)
    largest = max(float(np.diagonal(within).max()), 1e-300)
    factor, pivots, rank, _ = dpstrf(within, lower=1, tol=_ROUNDING * largest, overwrite_a=1)
    m = max(min(int(rank), _N_INDUCING), 1)
    lower = np.tril(factor[:m, :m])
    if not lower[0, 0]:  # nothing is shared
        lower[0, 0] = 1.0
    return some.some(pivots[:m] - 1), lower


def _turned(
    kernel: ConditionKernel,
    points: Points,
    blocks: list[list[int]],
    *,
    theta: Theta,
    unit: float,
    shared: Floats,
    root: Floats,
) -> tuple[sparse.csr_matrix, Floats]:
    """Return `D^-1/2` times eigenvectors, and eigenvalues, of what blocks have for themselves."""
    n = len(root)
    values, held = np.empty(n), []
    ends = np.cumsum([len(rows) for rows in blocks])
    for part in np.split(np.arange(len(blocks)), np.flatnonzero(np.diff(ends // _CHUNK)) + 1):
        rows = np.concatenate([blocks[i] for i in part])
        some = points.some(rows)
        within = kernel.between(some, some)(theta) / unit - shared[rows] @ shared[rows].T
        within /= np.outer(root[rows], root[rows])
        start = 0
        for own in (np.array(blocks[i]) for i in part):
            here = slice(start, start + len(own))
            found, vectors = np.linalg.eigh(within[here, here])
            values[own] = np.maximum(found, 0.0)
            held.append((np.repeat(own, len(own)), np.tile(own, len(own)),
                         (vectors / root[own, None]).ravel()))  # fmt: skip
            start += len(own)
    row, column, entries = (np.concatenate(one) for one in zip(*held, strict=True))
    return sparse.csr_matrix((entries, (row, column)), (n, n)), values
