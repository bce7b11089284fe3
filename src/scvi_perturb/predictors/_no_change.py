"""No change: what any prediction must beat."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb.predictors._mean import MeanPredictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.predictors._requests import Request

__all__ = ["NoChange"]


class NoChange(MeanPredictor):
    """Predict the control of the same context, whatever was done to the cells.

    It needs to know nothing about a perturbation and so refuses none.

    Parameters
    ----------
    profile
        What the mean of a population is; see `MeanPredictor`.
    """

    name: ClassVar[str] = "no_change"

    def _delta(self, request: Request) -> NDArray[np.float64]:
        return np.zeros(len(self.profiles.var_names))
