"""A forest on measured features: trees that ask for one property at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.predictors.ridge import Responses
from scvi_perturb.similarity.kernels import names_in, needed, require_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from sklearn.ensemble import ExtraTreesRegressor

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.request import RequestRow
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.profiles import Profile
    from scvi_perturb.predictors.request import ControlCells


#: Share of the features that are tried at each split: many of them say the same.
_TRIED: Final = 0.1
#: Fewest rows at the end of a branch.
_LEAF: Final = 2
#: Below this share of the largest a component is rounding.
_ROUNDING: Final = 1e-8


@checked
class FeatureForest(MeanPredictor):
    """Predict the mean training change plus what extremely randomised trees learn from features.

    A kernel takes all features at once for how alike two names are. A tree asks for one at a time,
    so that it finds the few that matter, thresholds, and what holds only together. Where there are
    modalities with values that are not whole numbers, such as descriptors of molecules or
    embeddings, it takes these alone: of sets and counts of parts each column says little, and a
    kernel is better.

    Rows are training conditions in all contexts, with the mean features of their components. The
    trees predict the leading components of the changes, all scaled alike: the largest component
    would else decide alone where branches part. They see names only, as `KernelRidge`.

    Parameters
    ----------
    features
        What is known about perturbations; `fit` refuses to go on without. Where a name lacks a
        modality, the mean of training stands in. Training conditions with a component that has no
        features are left out, of which a warning tells the number; asked for, they raise
        `UnknownPerturbationError`.
    n_trees
        Number of trees.
    n_components
        Number of leading components of the changes, at most the rank.
    seed
        Seed of the trees.
    profile
        What the mean of a population is; see `MeanPredictor`.

    Raises
    ------
    ValueError
        If a number is below 1.

    References
    ----------
    Geurts, Ernst and Wehenkel, Extremely randomized trees, Machine Learning 2006.
    """

    name: ClassVar[str] = "feature_forest"

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        n_trees: int = 100,
        n_components: int = 50,
        seed: int | None = 0,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        self.features = features
        self.n_trees = n_trees
        self.n_components = n_components
        self.seed = seed

    def _learn(self) -> None:
        """Grow the trees."""
        from sklearn.ensemble import ExtraTreesRegressor

        super()._learn()
        features = require_features(self.features, type(self).__name__)
        self._modalities = measured_modalities(features) or features.modalities
        rows = Responses.with_features(self.deltas, features, who=type(self).__name__)
        self._centres = {}
        for modality, (values, mask) in features.table(names_in(rows.conditions)).items():
            self._centres[modality] = values[mask].mean(axis=0) if mask.any() else values[0]
        self._mean = rows.changes.mean(axis=0)
        scores, spread, axes = np.linalg.svd(rows.changes - self._mean, full_matrices=False)
        k = int((spread[: self.n_components] > max(_ROUNDING * spread[0], 1e-300)).sum())
        self._axes = spread[:k, None] * axes[:k]
        self._trees = None
        if k:
            grown = ExtraTreesRegressor(
                self.n_trees, min_samples_leaf=_LEAF, max_features=_TRIED, random_state=self.seed
            ).fit(self._described(rows.conditions, features), scores[:, :k])
            self._trees = Trees.of(grown)

    def _described(
        self, conditions: Sequence[Condition], features: PerturbationFeatures
    ) -> NDArray[np.float64]:
        """Return the mean features of the components of conditions, `(n, n_columns)`."""
        names = names_in(conditions)
        table = features.table(names)
        parts = []
        for modality in self._modalities:
            values, mask = table[modality]
            parts.append(np.where(mask[:, None], values, self._centres[modality]))
        of_name = dict(zip(names, np.concatenate(parts, axis=1), strict=True))
        made = [[of_name[part.name] for part in one.components] for one in conditions]
        return np.stack([np.mean(own, axis=0, dtype=np.float64) for own in made])

    def _changes(
        self, requests: Sequence[RequestRow], given: ControlCells | None
    ) -> NDArray[np.float64]:
        del given
        features = require_features(self.features, type(self).__name__)
        conditions = [request.condition for request in requests]
        needed(conditions, features)
        made = np.zeros((len(requests), len(self._mean))) + self._mean
        if self._trees is not None:
            found = self._trees.predict(self._described(conditions, features))
            made += found @ self._axes
        return made


@dataclass(frozen=True, slots=True)
class Trees:
    """Grown trees as arrays, all nodes of all trees in one row.

    `roots`: Node that each tree begins with, `(n_trees,)`. `feature`: Column that a node asks for,
    -1 at the end of a branch. `threshold`: Values up to it go left. `left`, `right`: Next nodes,
    `(n_nodes,)`. `value`: What is predicted at the end of a branch, `(n_nodes, n_outputs)`.
    """

    roots: NDArray[np.int64]
    feature: NDArray[np.int64]
    threshold: NDArray[np.float64]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]

    @classmethod
    def of(cls, forest: ExtraTreesRegressor) -> Trees:
        """Take the trees out of a forest of scikit-learn."""
        trees = [one.tree_ for one in forest.estimators_]
        ends = np.cumsum([tree.node_count for tree in trees])
        roots = np.concatenate([[0], ends[:-1]])

        def joined(name: str, start: NDArray[np.int64] | None = None) -> NDArray[Any]:
            parts = [getattr(tree, name) for tree in trees]
            if start is None:
                return np.concatenate(parts)
            return np.concatenate([p + s for p, s in zip(parts, start, strict=True)])

        return cls(
            roots,
            np.maximum(joined("feature"), -1),
            joined("threshold"),
            joined("children_left", roots),
            joined("children_right", roots),
            joined("value")[:, :, 0],
        )

    def predict(self, described: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the mean of all trees, `(n, n_outputs)`."""
        values = described.astype(np.float32)
        rows = np.arange(len(values))
        total = np.zeros((len(values), self.value.shape[1]))
        for root in self.roots:
            node = np.full(len(values), root)
            while (inner := self.feature[node] >= 0).any():
                asked = values[rows, self.feature[node]] <= self.threshold[node]
                node = np.where(inner, np.where(asked, self.left[node], self.right[node]), node)
            total += self.value[node]
        return total / len(self.roots)


def measured_modalities(features: PerturbationFeatures) -> tuple[str, ...]:
    """Return the modalities with values that are not whole numbers."""
    found = []
    for modality in features.modalities:
        values = features.frame(modality).to_numpy()
        if not np.array_equal(values, np.rint(values)):
            found.append(modality)
    return tuple(found)
