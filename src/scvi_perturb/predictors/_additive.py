"""A combination as the sum of its single perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb._errors import UnknownPerturbationError
from scvi_perturb.data._condition import Condition
from scvi_perturb.predictors._mean import MeanPredictor
from scvi_perturb.predictors._profiles import agrees

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Component
    from scvi_perturb.predictors._requests import Request

__all__ = ["Additive"]


class Additive(MeanPredictor):
    """Predict the control plus the sum of the changes of each component measured alone.

    A component is looked up alone, with its own dose, kind and time: in the context asked for; if
    it was not measured there, its mean change over the other contexts is taken, each counted
    once. One that was measured alone nowhere is refused: there is no further fallback.

    Parameters
    ----------
    profile
        What the mean of a population is: "pseudobulk" or "cell_mean".

    References
    ----------
    Ahlmann-Eltze, Huber and Anders, Deep-learning-based gene perturbation effect prediction does
    not yet outperform simple linear baselines, Nature Methods 2025.
    """

    name: ClassVar[str] = "additive"

    def _delta(self, request: Request) -> NDArray[np.float64]:
        total = np.zeros(len(self.profiles.var_names))
        for component in request.condition.components:
            total += self._single(component, request)
        return total

    def _single(self, component: Component, request: Request) -> NDArray[np.float64]:
        alone = Condition((component,), time=request.condition.time)
        seen = self.deltas.get(alone, {})
        if not seen:
            raise UnknownPerturbationError(str(alone), self._singles())
        here = [delta for own, delta in seen.items() if agrees(request.context, own)]
        return np.mean(here or list(seen.values()), axis=0)

    def _singles(self) -> list[str]:
        return [str(condition) for condition in self.deltas if len(condition.components) == 1]
