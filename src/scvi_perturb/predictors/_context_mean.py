"""The mean change over other contexts, or over other perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from scvi_perturb._errors import SchemaError, UnknownPerturbationError, check_choice
from scvi_perturb.predictors._lookup import mean_of_context
from scvi_perturb.predictors._mean import MeanPredictor

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._requests import Request

__all__ = ["ContextMean"]


class ContextMean(MeanPredictor):
    """Predict the control of the context plus a mean of changes seen in training.

    Parameters
    ----------
    over
        "contexts": the mean change of the same condition in the *other* contexts, each context
        counted once; the trivial answer for an unseen context. "perturbations": the mean change
        of all training conditions in the *same* context, each condition counted once; the trivial
        answer for an unseen perturbation. "all": the mean of all training changes, each condition
        in each context counted once.
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Ahlmann-Eltze, Huber and Anders, Deep-learning-based gene perturbation effect prediction does
    not yet outperform simple linear baselines, Nature Methods 2025.
    """

    name: ClassVar[str] = "context_mean"

    def __init__(
        self,
        over: Literal["contexts", "perturbations", "all"] = "contexts",
        *,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        check_choice("over", over, ("contexts", "perturbations", "all"))
        self.over = over

    def _delta(self, request: Request) -> NDArray[np.float64]:
        if self.over == "contexts":
            return self._over_contexts(request)
        if self.over == "all":
            return np.mean([d for seen in self.deltas.values() for d in seen.values()], axis=0)
        return mean_of_context(self.deltas, request.context)

    def _over_contexts(self, request: Request) -> NDArray[np.float64]:
        seen = self.deltas.get(request.condition, {})
        label = str(request.condition)
        if not seen:
            raise UnknownPerturbationError(label, self.profiles.known_names())
        others = [delta for own, delta in seen.items() if own != request.context]
        if not others:
            msg = (
                f"{label!r} was measured in context {request.context} alone, so there is no other "
                "context to take its change from. Give `context_keys` to `fit`, or use "
                "`ContextMean('perturbations')` or `Additive`."
            )
            raise SchemaError(msg)
        return np.mean(others, axis=0)
