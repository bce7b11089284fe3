"""A combination as the sum of its single perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb._errors import UnknownPerturbationError
from scvi_perturb.data._condition import Condition
from scvi_perturb.predictors._lookup import here_or_mean, measured_alone, names_of_singles
from scvi_perturb.predictors._mean import MeanPredictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

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
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Ahlmann-Eltze, Huber and Anders, Deep-learning-based gene perturbation effect prediction does
    not yet outperform simple linear baselines, Nature Methods 2025.
    """

    name: ClassVar[str] = "additive"

    def _delta(self, request: Request) -> NDArray[np.float64]:
        total = np.zeros(len(self.profiles.var_names))
        for component in request.condition.components:
            seen = measured_alone(self.deltas, component, request.condition.time)
            if not seen:
                alone = Condition((component,), time=request.condition.time)
                raise UnknownPerturbationError(str(alone), names_of_singles(self.deltas))
            total += here_or_mean(seen, request.context)
        return total
