"""Several predictors in turn: the first that knows a condition answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from scvi_perturb._errors import SchemaError, UnknownPerturbationError
from scvi_perturb.predictors._mean import MeanPredictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._keys import ConditionKeys
    from scvi_perturb.data._splits import Split
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

    def fit(
        self,
        adata: AnnData,
        split: Split | None = None,
        *,
        keys: ConditionKeys | None = None,
        context_keys: Sequence[str] = (),
        layer: str | None = None,
    ) -> Self:
        """Fit all of them; as `MeanPredictor.fit`."""
        super().fit(adata, split, keys=keys, context_keys=context_keys, layer=layer)
        for predictor in self.predictors:
            predictor.fit(adata, split, keys=keys, context_keys=context_keys, layer=layer)
        return self

    def _delta(self, request: Request) -> NDArray[np.float64]:
        *better, last = self.predictors
        for predictor in better:
            try:
                return predictor._delta(request)
            except (UnknownPerturbationError, SchemaError):
                continue
        return last._delta(request)
