"""Any predictor of the protocol, as a predictor of changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb.data._align import align_genes
from scvi_perturb.predictors._mean import MeanPredictor
from scvi_perturb.predictors._requests import request_frame

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._protocol import Predictor
    from scvi_perturb.predictors._reference import Reference
    from scvi_perturb.predictors._requests import Request

__all__ = ["OutsidePredictor"]


class OutsidePredictor(MeanPredictor):
    """Ask a predictor that was fitted elsewhere for `layers["lfc"]` of its `predict`.

    It is not fitted again, so nothing is known of its errors. User's reference cells do not reach
    it: it answers from the training controls.

    Parameters
    ----------
    predictor
        Fitted to the same screen; changes of pseudobulk profiles.
    """

    name: ClassVar[str] = "outside"
    can_refit: ClassVar[bool] = False

    def __init__(self, predictor: Predictor) -> None:
        super().__init__(profile="pseudobulk")
        self.predictor = predictor

    def changes(
        self, requests: Sequence[Request], given: Reference | None = None
    ) -> NDArray[np.float64]:
        """Return the predicted change of each request; as `MeanPredictor.changes`."""
        del given
        frame = request_frame(requests, self.profiles.keys, self.profiles.context_keys)
        open_ones = [key for key in self.profiles.context_keys if frame[key].isna().all()]
        found = self.predictor.predict(frame.drop(columns=open_ones).reset_index(drop=True))
        found = align_genes(found, tuple(self.profiles.var_names))
        return np.asarray(found.layers["lfc"], np.float64)

    def _delta(self, request: Request) -> NDArray[np.float64]:
        return self.changes([request])[0]
