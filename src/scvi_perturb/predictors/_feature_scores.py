"""Principal components of the features of perturbations, learned from training names alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.features import PerturbationFeatures

__all__ = ["FeatureScores"]


@dataclass(frozen=True, slots=True)
class FeatureScores:
    """Maps names to scores of their features.

    Each modality is centred and divided by the root of its total variance over the training
    names, so that none outweighs another by its number of columns or its units. A name that lacks
    a modality is put at the mean of that modality.

    Parameters
    ----------
    features
        What is known about perturbations.
    centre, scale
        Mean row and scale of each modality, in training.
    axes
        Principal axes, `(n_columns of all modalities, k)`.
    """

    features: PerturbationFeatures
    centre: dict[str, NDArray[np.float64]]
    scale: dict[str, float]
    axes: NDArray[np.float64]

    @classmethod
    def fit(
        cls, features: PerturbationFeatures, names: Sequence[str], n_components: int
    ) -> FeatureScores:
        """Learn centre, scale and axes from `names`, each counted once."""
        centre, scale = {}, {}
        distinct = sorted(set(names))
        for modality, (values, mask) in features.table(distinct).items():
            own = values[mask].astype(np.float64)
            centre[modality] = own.mean(axis=0) if len(own) else np.zeros(values.shape[1])
            total = float(own.var(axis=0).sum()) if len(own) else 0.0
            scale[modality] = np.sqrt(total) if total > 0 else 1.0
        made = cls(features, centre, scale, np.empty((0, 0)))
        _, spread, axes = np.linalg.svd(made._standard(distinct), full_matrices=False)
        rank = int((spread > max(spread[0], 1.0) * 1e-10).sum())
        kept = min(n_components, max(rank, 1))
        return cls(features, centre, scale, axes[:kept].T)

    def of(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return the scores of names that have features, `(n_names, k)`."""
        return self._standard(names) @ self.axes

    def _standard(self, names: Sequence[str]) -> NDArray[np.float64]:
        parts = [
            np.where(mask[:, None], values - self.centre[modality], 0.0) / self.scale[modality]
            for modality, (values, mask) in self.features.table(names).items()
        ]
        return np.concatenate(parts, axis=1)
