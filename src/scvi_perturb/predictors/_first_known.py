"""Several predictors in turn: the first that knows a condition answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from scvi_perturb._errors import SchemaError, UnknownPerturbationError
from scvi_perturb.predictors._mean import MeanPredictor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from scvi_perturb.predictors._requests import Request

__all__ = ["FirstKnown"]


class FirstKnown(MeanPredictor):
    """Predict by the first of several predictors that does not refuse a condition.

    So that a table has an answer everywhere: the sum of singles where all were measured, else
    the mean of those that were.

    Parameters
    ----------
    predictors
        Predictors of means, the best first; all with the same `profile`.

    Raises
    ------
    SchemaError
        If there are none, or they differ in `profile`.
    """

    name: ClassVar[str] = "first_known"

    def __init__(self, *predictors: MeanPredictor) -> None:
        kinds = {predictor.profile for predictor in predictors}
        if len(kinds) != 1:
            msg = f"Found profiles {sorted(kinds)}; give predictors, all with the same profile."
            raise SchemaError(msg)
        super().__init__(profile=kinds.pop())
        self.predictors = predictors
        self.needs_variances = any(one.needs_variances for one in predictors)

    def _learn(self) -> None:
        super()._learn()
        for predictor in self.predictors:
            predictor.fit_profiles(self.profiles)

    def _delta(self, request: Request) -> NDArray[np.float64]:
        *better, last = self.predictors
        for predictor in better:
            try:
                return predictor._delta(request)
            except (UnknownPerturbationError, SchemaError):
                continue
        return last._delta(request)
