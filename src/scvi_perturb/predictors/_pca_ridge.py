"""The bilinear model: principal components of genes times those of perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from scvi_perturb._errors import UnknownPerturbationError
from scvi_perturb.predictors._feature_scores import FeatureScores
from scvi_perturb.predictors._mean import MeanPredictor
from scvi_perturb.predictors._ridge import Responses

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._requests import Request

__all__ = ["PCARidge"]


class PCARidge(MeanPredictor):
    """Predict `G W p + b`, the changes of training being fitted by `Y ~ G W P' + b`.

    `G`, `(n_genes, k)`, are the scores of genes in the leading principal components of the
    training profiles, controls included, each profile centred over genes. `b` is the mean training
    change. `P`, `(n_perturbations, k')`, are the scores of perturbations in the principal
    components of their features, or, without features, the rows of `G` of the perturbed genes
    themselves. `W` is the ridge solution `(G'G + l)^-1 G' (Y - b) P (P'P + l)^-1`.

    It is fitted on conditions of one component, in all contexts; contexts, doses, kinds and times
    make no difference to `p`. A combination is the sum of the predictions of its components, each
    with its `b`.

    Parameters
    ----------
    features
        What is known about perturbations. Without, perturbations have to be genes of the screen
        under the same name. Training conditions of which neither is known are left out, of which a
        warning tells; asked for, they raise `UnknownPerturbationError`.
    n_components
        Number of components of genes and of features, at most the rank.
    penalty
        `l`.
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Ahlmann-Eltze, Huber and Anders, Deep-learning-based gene perturbation effect prediction does
    not yet outperform simple linear baselines, Nature Methods 2025.
    """

    name: ClassVar[str] = "pca_ridge"

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        n_components: int = 10,
        penalty: float = 0.1,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        if n_components < 1 or not penalty > 0:
            msg = (
                f"n_components={n_components} and penalty={penalty}; expected at least 1 and a "
                "number above 0."
            )
            raise ValueError(msg)
        self.features = features
        self.n_components = n_components
        self.penalty = penalty

    def _learn(self) -> None:
        super()._learn()
        known = self.profiles.var_names if self.features is None else self.features.names
        self._known = frozenset(known)
        singles = {c: seen for c, seen in self.deltas.items() if len(c.components) == 1}
        rows = Responses.gather(
            singles,
            lambda condition: condition.components[0].name in self._known,
            who=type(self).__name__,
        )
        names = [condition.components[0].name for condition in rows.conditions]
        self._genes = self._gene_scores()
        self._scores = None
        if self.features is not None:
            self._scores = FeatureScores.fit(self.features, names, self.n_components)
        self._mean = rows.changes.mean(axis=0)
        centred = rows.changes - self._mean
        left = _ridge_inverse(self._genes, self.penalty)
        places = self._perturbation_scores(names)
        right = _ridge_inverse(places, self.penalty)
        self._weights = left @ centred.T @ right.T

    def _gene_scores(self) -> NDArray[np.float64]:
        """Return `G`; signs do not matter, since `W` follows them."""
        profiles = self.profiles
        groups = [
            i
            for i, condition in enumerate(profiles.conditions)
            if self.profile != "effects" or not condition.is_control
        ]
        matrix = np.stack([profiles.profile([i]) for i in groups], axis=1)
        matrix = matrix - matrix.mean(axis=0)
        left, spread, _ = np.linalg.svd(matrix, full_matrices=False)
        rank = int((spread > spread[0] * 1e-10).sum())
        kept = min(self.n_components, max(rank, 1))
        return left[:, :kept] * spread[:kept]

    def _perturbation_scores(self, names: Sequence[str]) -> NDArray[np.float64]:
        if self._scores is not None:
            return self._scores.of(names)
        return self._genes[self.profiles.var_names.get_indexer(pd.Index(names))]

    def _delta(self, request: Request) -> NDArray[np.float64]:
        names = [part.name for part in request.condition.components]
        for name in names:
            if name not in self._known:
                raise UnknownPerturbationError(name, self._known)
        parts = self._genes @ self._weights @ self._perturbation_scores(names).T
        return parts.sum(axis=1) + len(names) * self._mean


def _ridge_inverse(columns: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Return `(X'X + penalty)^-1 X'`, `(n_columns, n_rows)`."""
    gram = columns.T @ columns + penalty * np.eye(columns.shape[1])
    return np.asarray(np.linalg.solve(gram, columns.T), np.float64)
