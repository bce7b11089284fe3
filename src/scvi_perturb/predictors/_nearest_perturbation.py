"""The change of the training perturbation that is most alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb._errors import UnknownPerturbationError
from scvi_perturb.predictors._lookup import here_or_mean, measured_alone, names_of_singles
from scvi_perturb.predictors._mean import MeanPredictor
from scvi_perturb.predictors._similarity import Similarity, require_features

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Component, Condition
    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._requests import Request

__all__ = ["NearestPerturbation"]

#: Similarities that differ by less are equal.
_TIE = 1e-9


class NearestPerturbation(MeanPredictor):
    """Predict the change of the training perturbation whose features are most similar.

    A component that was measured alone, at its dose, kind and time, keeps its own change. One
    measured alone at other doses only takes the nearest of these. For any other, the perturbation
    measured alone with the most similar features stands in (Tanimoto or Gaussian similarity, as
    in `KernelRidge`), at the nearest of its doses; ties are averaged. A change is that of the
    context asked for or, where it was not measured there, the mean over its contexts. The changes
    of the components of a combination are summed.

    Parameters
    ----------
    features
        What is known about perturbations; `fit` refuses to go on without. Training perturbations
        that have none cannot be the nearest.
    profile
        What the mean of a population is; see `MeanPredictor`.
    """

    name: ClassVar[str] = "nearest_perturbation"

    def __init__(
        self, features: PerturbationFeatures | None = None, *, profile: Profile = "pseudobulk"
    ) -> None:
        super().__init__(profile=profile)
        self.features = features

    def _learn(self) -> None:
        super()._learn()
        features = require_features(self.features, type(self).__name__)
        self._singles: dict[str, list[Condition]] = {}
        for condition in self.deltas:
            if len(condition.components) == 1:
                self._singles.setdefault(condition.components[0].name, []).append(condition)
        self._similarity = Similarity(
            features, [name for name in self._singles if name in features]
        )

    def _delta(self, request: Request) -> NDArray[np.float64]:
        total = np.zeros(len(self.profiles.var_names))
        for component in request.condition.components:
            seen = measured_alone(self.deltas, component, request.condition.time)
            if seen:
                total += here_or_mean(seen, request.context)
                continue
            changes = [
                here_or_mean(self.deltas[condition], request.context)
                for name in self._nearest(component)
                for condition in _nearest_dose(self._singles[name], component)
            ]
            total += np.mean(changes, axis=0)
        return total

    def _nearest(self, component: Component) -> list[str]:
        if component.name in self._singles:
            return [component.name]
        similarity, shared = self._similarity.between([component.name])
        if not shared.any():
            raise UnknownPerturbationError(component.name, names_of_singles(self.deltas))
        best = np.where(shared, similarity, -np.inf)[0]
        found = np.flatnonzero(best >= best.max() - _TIE)
        return [self._similarity.known[i] for i in found]


def _nearest_dose(singles: list[Condition], component: Component) -> list[Condition]:
    gaps = [abs(np.log(c.components[0].dose / component.dose)) for c in singles]
    return [c for c, gap in zip(singles, gaps, strict=True) if gap <= min(gaps) + _TIE]
