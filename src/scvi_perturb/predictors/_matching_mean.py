"""A combination as the mean of its single perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb.predictors._lookup import mean_of_context, measured_alone, measured_here
from scvi_perturb.predictors._mean import MeanPredictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.predictors._requests import Request

__all__ = ["MatchingMean"]


class MatchingMean(MeanPredictor):
    """Predict the mean of the components' profiles, each measured alone in the context.

    A component that was not measured alone there, at its dose, kind and time, is replaced by the
    mean profile of all training conditions of the context, each counted once. A single
    perturbation that was never measured so gets that mean. Nothing is taken from other contexts.

    Asking for a context in which nothing was perturbed raises `SchemaError`.

    Parameters
    ----------
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Vinas Torne et al., Systema: a framework for evaluating genetic perturbation response
    prediction beyond systematic variation, Nature Biotechnology 2025.
    """

    name: ClassVar[str] = "matching_mean"

    def _delta(self, request: Request) -> NDArray[np.float64]:
        parts = []
        for component in request.condition.components:
            seen = measured_alone(self.deltas, component, request.condition.time)
            here = measured_here(seen, request.context)
            parts.append(
                np.mean(here, axis=0) if here else mean_of_context(self.deltas, request.context)
            )
        return np.mean(parts, axis=0)
