"""Kernel ridge regression of changes on the features of perturbations."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb.predictors._mean import MeanPredictor
from scvi_perturb.predictors._ridge import PENALTIES, GroupedRidge, Responses, check_penalties
from scvi_perturb.predictors._similarity import (
    Similarity,
    covered,
    names_in,
    needed,
    require_features,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._reference import Reference
    from scvi_perturb.predictors._requests import Request

__all__ = ["KernelRidge"]


class KernelRidge(MeanPredictor):
    """Predict the mean training change plus a kernel regression on features.

    Rows of the regression are all training conditions in all contexts, with as many outputs as
    genes. The kernel between two names is Tanimoto's, `sum(min) / sum(max)`, where a modality is
    nowhere negative, and else Gaussian with the median distance as width; it is averaged over the
    modalities that both names have. That between two conditions is the mean over pairs of
    components, so the prediction of a combination is the mean of those of its components. It sees
    names only: a perturbation has one prediction for all contexts, seen or not, and for all doses,
    kinds and times. A name whose features are similar to none gets the mean.

    The penalty is the one of least squared error when all rows of the same names are left out
    together, the mean kept, in closed form. The cost is cubic in the number of rows.

    Parameters
    ----------
    features
        What is known about perturbations; `fit` refuses to go on without. Training conditions
        with a component that has none are left out, of which a warning tells the number; asked
        for, they raise `UnknownPerturbationError`.
    penalties
        To choose from, in units of the kernel's diagonal.
    profile
        What the mean of a population is; see `MeanPredictor`.

    Attributes
    ----------
    lambda_
        The penalty that was chosen, after `fit`.
    """

    name: ClassVar[str] = "kernel_ridge"
    lambda_: float

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        penalties: Sequence[float] = PENALTIES,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        self.features = features
        self.penalties = check_penalties(penalties)

    def _learn(self) -> None:
        super()._learn()
        features = require_features(self.features, type(self).__name__)
        rows = Responses.gather(
            self.deltas, lambda condition: covered(condition, features), who=type(self).__name__
        )
        self._similarity = Similarity(features, names_in(rows.conditions))
        shares = self._similarity.shares(rows.conditions)
        self._mean = rows.changes.mean(axis=0)
        ridge = GroupedRidge.fit(
            self._similarity.of(rows.conditions) @ shares.T,
            rows.changes - self._mean,
            groups=rows.groups(),
            penalties=self.penalties,
        )
        #: What each training name adds to a prediction, in units of similarity to it.
        self._weights = shares.T @ ridge.weights
        self.lambda_ = ridge.penalty

    def changes(
        self, requests: Sequence[Request], given: Reference | None = None
    ) -> NDArray[np.float64]:
        """Return the predicted change of each request, all at once; as `MeanPredictor.changes`."""
        del given
        made = np.zeros((len(requests), len(self.profiles.var_names)))
        treated = [i for i, one in enumerate(requests) if not one.condition.is_control]
        if treated:
            asked = [requests[i].condition for i in treated]
            needed(asked, self._similarity.features)
            made[treated] = self._mean + self._similarity.of(asked) @ self._weights
        return made

    def _delta(self, request: Request) -> NDArray[np.float64]:
        return self.changes([request])[0]
