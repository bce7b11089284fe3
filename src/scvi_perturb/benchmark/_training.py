"""What training shows: the mean change, and how far a condition is from it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.predictors import ContextMean

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark._task import Task
    from scvi_perturb.data._condition import Condition
    from scvi_perturb.features import PerturbationFeatures

    Labels = tuple[str, ...]

__all__ = ["Training"]


class Training:
    """The changes from control of the cells that may be seen.

    Parameters
    ----------
    task, visible
        What is asked, and the cells that may be seen.
    features
        What is known of perturbations beforehand.
    """

    def __init__(self, task: Task, visible: AnnData, features: PerturbationFeatures | None) -> None:
        learned = ContextMean(
            "perturbations", profile="pseudobulk" if task.values == "counts" else "effects"
        )
        learned.fit(visible, keys=task.keys, context_keys=task.context_keys, layer=task.layer)
        self._deltas, self._profiles = learned.deltas, learned.profiles
        self._features = features
        self._names = {name for condition in self._deltas for name in condition.names}
        self._alone = {c.names[0] for c in self._deltas if len(c.components) == 1}
        self._contexts = {own for seen in self._deltas.values() for own in seen}

    def centre(self, context: Labels) -> NDArray[np.float64]:
        """Return the mean change of training conditions, in the same context if there are any."""
        here = [seen[context] for seen in self._deltas.values() if context in seen]
        return np.mean(here or [d for s in self._deltas.values() for d in s.values()], axis=0)

    def distances(self, condition: Condition, context: Labels) -> dict[str, float]:
        """Return how far a condition is from training, see `Case.about`."""
        return {
            "n_seen": float(sum(name in self._alone for name in condition.names)),
            "feature_distance": float(np.mean([self._of_name(n) for n in condition.names])),
            "context_distance": self._of_context(context),
        }

    def _of_name(self, name: str) -> float:
        if name in self._names:
            return 0.0
        if self._features is None or name not in self._features:
            return float("nan")
        nearest = self._features.nearest(name, self._names, n=1)
        return nearest[0][1] if nearest else float("nan")

    def _of_context(self, context: Labels) -> float:
        if context in self._contexts or self._profiles.kind == "effects":
            return 0.0
        if not self._profiles.controls(context):
            return float("nan")
        own = self._profiles.control_profile(context)
        others = (self._profiles.control_profile(other) for other in self._contexts)
        return float(min(np.linalg.norm(own - other) for other in others))
