"""How alike perturbations are by their features: a kernel between names, and between conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from scipy.spatial.distance import cdist, pdist

from scvi_perturb._core import SchemaError, UnknownPerturbationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import Any, TypeAlias

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.features.store import PerturbationFeatures

    Parts: TypeAlias = dict[str, tuple[NDArray[np.float64], NDArray[np.bool_]]]
    Table: TypeAlias = Mapping[str, tuple[NDArray[np.float32], NDArray[np.bool_]]]
    Kernel: TypeAlias = Callable[[NDArray[np.float32], NDArray[np.float32]], NDArray[Any]]


#: Largest count that is taken apart into levels.
_MOST_LEVELS: Final = 16


class Similarity:
    """Similarity of any names to those of training, 0 to 1.

    Each modality has a kernel: Tanimoto, `sum(min) / sum(max)`, if its features are nowhere
    negative (0 where both rows are all zero), and else `exp(-d**2 / (2 m**2))` of the Euclidean
    distance `d`, with `m` the median distance between different rows of training. The similarity
    is the mean over the modalities that both names have, and 0 if they share none; then it may be
    sharpened.

    `features`: What is known about perturbations. `known`: Names of training, all in `features`.
    Bandwidths are learned from these alone. `weights`: Weight of each modality in the mean, not
    negative; None is 1. `sharpness`: See `sharpened`; 0 leaves the mean as it is.
    """

    def __init__(
        self,
        features: PerturbationFeatures,
        known: Iterable[str],
        *,
        weights: Mapping[str, float] | None = None,
        sharpness: float = 0.0,
    ) -> None:
        self.features = features
        self.known = tuple(sorted(set(known)))
        self.weights = dict.fromkeys(features.modalities, 1.0) | dict(weights or {})
        self.sharpness = sharpness
        self._table = features.table(self.known)
        self._kernels = {
            modality: ModalityKernel.learn(features.frame(modality).to_numpy(), values[mask])
            for modality, (values, mask) in self._table.items()
        }

    def between(self, names: Sequence[str]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the similarity of `names` to `known`, and whether they share a modality.

        Returns two arrays `(n_names, n_known)`.
        """
        parts = self.parts(names)
        mean = weighted_mean(parts, self.weights)
        shared = np.logical_or.reduce([both for _, both in parts.values()])
        return sharpened(mean, self.sharpness), shared

    def parts(self, names: Sequence[str]) -> Parts:
        """Return the similarity of `names` to `known` in each modality, and where both have it.

        Returns two arrays `(n_names, n_known)` by modality; the similarity is 0 where one lacks it.
        """
        return compare_names(self.features.table(names), self._table, self._kernels)

    def of(self, asked: Sequence[Condition]) -> NDArray[np.float64]:
        """Return the mean similarity of the components of conditions to `known`.

        Components are told apart by name alone: doses, kinds and times make no difference.

        Returns `(n_asked, n_known)`. Times the transpose of `shares`, it is the similarity of
        conditions: the mean over pairs of a component of one and a component of the other.
        """
        names = names_in(asked)
        return _averaging(asked, names) @ self.between(names)[0]

    def shares(self, conditions: Sequence[Condition]) -> NDArray[np.float64]:
        """Return the share of each known name in conditions of training, `(n, n_known)`."""
        return _averaging(conditions, self.known)


@dataclass(frozen=True, slots=True)
class ModalityKernel:
    """The kernel of a modality: Gaussian of a width, or Tanimoto's where the width is None."""

    width: float | None
    sets: bool

    @classmethod
    def learn(cls, every: NDArray[np.float32], known: NDArray[np.float32]) -> ModalityKernel:
        """Choose by the signs of all rows; the width is learned from `known` rows alone."""
        if every.size and every.min() >= 0:
            return cls(None, sets=bool(np.isin(every, (0.0, 1.0)).all()))
        distances = pdist(known.astype(np.float64)) if len(known) > 1 else np.empty(0)
        apart = distances[distances > 0]
        return cls(float(np.median(apart)) if apart.size else 1.0, sets=False)

    def __call__(
        self, left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Return the similarity of rows, `(n_left, n_right)`."""
        if self.width is None:
            return tanimoto(left, right, sets=self.sets)
        squared = cdist(left.astype(np.float64), right.astype(np.float64), "sqeuclidean")
        return np.exp(-squared / (2 * self.width**2))


@dataclass(frozen=True, slots=True)
class LinearKernel:
    """Products of centred features, 1 on average over the training rows with themselves.

    `centre`: Mean of the training rows, `(d,)`. `size`: Mean squared length of the centred rows.
    """

    centre: NDArray[np.float64]
    size: float

    @classmethod
    def learn(cls, known: NDArray[np.float32]) -> LinearKernel:
        """Learn from the rows of training, `(n, d)`."""
        centre = known.mean(axis=0, dtype=np.float64)
        size = float(((known - centre) ** 2).sum(axis=1).mean())
        return cls(centre, size if size > 0 else 1.0)

    def __call__(
        self, left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> NDArray[np.float64]:
        """Return the products of rows, `(n_left, n_right)`."""
        made: NDArray[np.float64] = (left - self.centre) @ (right - self.centre).T / self.size
        return made


@dataclass(frozen=True, slots=True)
class CosineKernel:
    """Cosine of features less their mean over training."""

    centre: NDArray[np.float32]

    def __call__(
        self, left: NDArray[np.float32], right: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Return the cosines of rows, `(n_left, n_right)`; 0 where a row is the mean."""
        first, second = (_unit(rows - self.centre) for rows in (left, right))
        cosines: NDArray[np.float32] = first @ second.T
        return cosines


def _unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    size = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (rows / np.where(size > 0, size, 1.0)).astype(np.float32)
    return unit


def compare_names(left: Table, right: Table, kernels: Mapping[str, Kernel]) -> Parts:
    """Return the similarity of names in each modality that has a kernel, and where both have it.

    `left`, `right`: Features of the names and whether they have them, by modality; see
    `PerturbationFeatures.table`. Returns two arrays `(n_left, n_right)` by modality; the similarity
    is 0 where one lacks it.
    """
    made = {}
    for modality, kernel in kernels.items():
        (values, has), (others, have) = left[modality], right[modality]
        both = has[:, None] & have[None, :]
        made[modality] = np.where(both, kernel(values, others), 0.0), both
    return made


def near(
    left: NDArray[np.float64], right: NDArray[np.float64], width: float
) -> NDArray[np.float64]:
    """Return the Gaussian kernel of numbers, `(n_left, n_right)`: of log doses, or log times."""
    made: NDArray[np.float64] = np.exp(-((left[:, None] - right[None, :]) ** 2) / (2 * width**2))
    return made


def weighted_mean(parts: Parts, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """Return the mean similarity over the modalities that names share; 0 if they share none."""
    shape = next(iter(parts.values()))[0].shape
    total, weight = np.zeros(shape), np.zeros(shape)
    for modality, (alike, both) in parts.items():
        total += weights[modality] * alike
        weight += weights[modality] * both
    return np.divide(total, weight, out=np.zeros(shape), where=weight > 0)


def sharpened(alike: NDArray[np.float64], sharpness: float) -> NDArray[np.float64]:
    """Return `(exp(g s) - 1) / (exp(g) - 1)` of similarities `s`, with `g` the sharpness.

    0 and 1 stay, and what is between falls, so that near neighbours count for more: with `s` a
    Gaussian or Tanimoto's kernel it is, up to a constant, the Gaussian kernel of the distance in
    its space. It is a sum of powers of `s` with positive weights, and so a kernel if `s` is one. 0
    leaves `s` as it is.
    """
    if not sharpness:
        return alike
    made: NDArray[np.float64] = np.expm1(sharpness * alike) / np.expm1(sharpness)
    return made


def tanimoto(
    left: NDArray[np.float32], right: NDArray[np.float32], *, sets: bool = False
) -> NDArray[np.float64]:
    """Return `sum(min) / sum(max)` of rows that are not negative, `(n_left, n_right)`.

    On rows of zeros and ones this is the Jaccard index; two rows of zeros have 0.

    `left`, `right`: `(n_left, d)` and `(n_right, d)`. `sets`: Whether all values are 0 or 1, which
    is faster. Then float32 is exact below 2**24.
    """
    sums = left.sum(axis=1, dtype=float)[:, None] + right.sum(axis=1, dtype=float)[None, :]
    least = (left @ right.T).astype(np.float64) if sets else _sum_of_least(left, right)
    most = sums - least
    return np.divide(least, most, out=np.zeros_like(most), where=most > 0)


def _sum_of_least(left: NDArray[np.float32], right: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return `sum(min)` of rows that are not negative, `(n_left, n_right)`."""
    # A small count is the number of levels that it reaches: sets again, whose products are fast.
    top = np.minimum(left.max(axis=0, initial=0), right.max(axis=0, initial=0))
    counts = (left == np.rint(left)).all(axis=0) & (right == np.rint(right)).all(axis=0)
    few = counts & (top <= _MOST_LEVELS)
    rest = ~few & (top > 0)
    least = np.zeros((len(left), len(right)))
    for level in range(1, int(top[few].max(initial=0)) + 1):
        reached = few & (top >= level)
        ours, theirs = ((x[:, reached] >= level).astype(np.float32) for x in (left, right))
        least += ours @ theirs.T
    if rest.any():
        # rows in one piece: distances of others take many times longer
        first, second = (x[:, rest].astype(np.float64, order="C") for x in (left, right))
        sums = first.sum(axis=1)[:, None] + second.sum(axis=1)[None, :]
        least += (sums - cdist(first, second, "cityblock")) / 2
    return least


def require_features(features: PerturbationFeatures | None, who: str) -> PerturbationFeatures:
    """Return the features.

    Raises `SchemaError`: If there are none.
    """
    if features is None:
        msg = (
            f"{who} compares perturbations by their features, and was given none. Make it with "
            f"`{who}(PerturbationFeatures(...))`, with a row for each perturbation."
        )
        raise SchemaError(msg)
    return features


def needed(conditions: Iterable[Condition], features: PerturbationFeatures) -> None:
    """Raise unless all components have features.

    Raises `UnknownPerturbationError`: Naming the first that has none, and the nearest names that
    have.
    """
    for name in names_in(conditions):
        if name not in features:
            raise UnknownPerturbationError(name, features.names)


def covered(condition: Condition, features: PerturbationFeatures) -> bool:
    """Whether all components of a condition have features."""
    return all(part.name in features for part in condition.components)


def names_in(conditions: Iterable[Condition]) -> list[str]:
    """Return the names of all components, sorted, each once."""
    return sorted({part.name for condition in conditions for part in condition.components})


def _averaging(conditions: Sequence[Condition], names: Sequence[str]) -> NDArray[np.float64]:
    """Return the share of each name in each condition, `(n_conditions, n_names)`."""
    place = {name: i for i, name in enumerate(names)}
    shares = np.zeros((len(conditions), len(names)))
    for i, condition in enumerate(conditions):
        for part in condition.components:
            shares[i, place[part.name]] += 1 / len(condition.components)
    return shares
