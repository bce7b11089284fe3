"""Kernel ridge regression on a blend of several modalities of features."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np

from scvi_perturb.predictors._blend import choose_blend, tuning_rows
from scvi_perturb.predictors._mean import MeanPredictor
from scvi_perturb.predictors._ridge import PENALTIES, GroupedRidge, Responses, check_penalties
from scvi_perturb.predictors._similarity import (
    Similarity,
    covered,
    names_in,
    needed,
    require_features,
    sharpened,
    weighted_mean,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._reference import Reference
    from scvi_perturb.predictors._requests import Request

__all__ = ["BlendedKernelRidge"]

#: Sharpnesses to choose from; 0 is `KernelRidge`.
SHARPNESSES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


class BlendedKernelRidge(MeanPredictor):
    """Predict the mean training change plus a regression on features, the kernel of which is tuned.

    As `KernelRidge`, but the similarity of two names is a weighted mean over modalities, then
    sharpened: `(exp(g s) - 1) / (exp(g) - 1)`. Tanimoto's similarity falls slowly, so that all of
    training has a say in each prediction; how fast it should fall is a question to the data.

    All is chosen by the squared error when all rows of the same names are left out together, the
    mean kept, in closed form. A modality weighs as much as the share of the error that it takes
    away by itself, so that one that says nothing does no harm; then sharpness and penalty are
    those of least error. The cost is that of some 50 ridge regressions for each modality.

    Parameters
    ----------
    features
        What is known about perturbations, as for `KernelRidge`.
    sharpnesses
        To choose from, none negative; 0 leaves the similarity as it is.
    penalties
        To choose from, in units of the kernel's diagonal.
    n_tuning
        Most rows to choose weights and sharpness on, whole sets of names drawn at random.
    profile
        What the mean of a population is; see `MeanPredictor`.

    Attributes
    ----------
    weights_, sharpness_, lambda_
        Weight of each modality, sharpness and penalty that were chosen, after `fit`.

    References
    ----------
    Gönen and Alpaydin, Multiple kernel learning algorithms, Journal of Machine Learning Research
    2011.
    """

    name: ClassVar[str] = "blended_kernel_ridge"
    weights_: dict[str, float]
    sharpness_: float
    lambda_: float

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        sharpnesses: Sequence[float] = SHARPNESSES,
        penalties: Sequence[float] = PENALTIES,
        n_tuning: int = 500,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        self.features = features
        self.sharpnesses = tuple(float(value) for value in sharpnesses)
        if not self.sharpnesses or not all(0 <= value <= 100 for value in self.sharpnesses):
            msg = f"sharpnesses={self.sharpnesses}; expected at least one number, from 0 to 100."
            raise ValueError(msg)
        if n_tuning < 2:
            msg = f"n_tuning={n_tuning}; expected at least 2 rows."
            raise ValueError(msg)
        self.penalties = check_penalties(penalties)
        self.n_tuning = n_tuning

    def _learn(self) -> None:
        super()._learn()
        features = require_features(self.features, type(self).__name__)
        rows = Responses.gather(
            self.deltas, lambda condition: covered(condition, features), who=type(self).__name__
        )
        plain = Similarity(features, names_in(rows.conditions))
        parts, shares = plain.parts(plain.known), plain.shares(rows.conditions)
        groups = rows.groups()
        self._mean = rows.changes.mean(axis=0)
        centred = rows.changes - self._mean
        some = tuning_rows(groups, self.n_tuning)
        blend = choose_blend(
            parts,
            centred[some],
            shares=shares[some],
            groups=groups[some],
            sharpnesses=self.sharpnesses,
            penalties=self.penalties,
        )
        alike = sharpened(weighted_mean(parts, blend.weights), blend.sharpness)
        ridge = GroupedRidge.fit(
            shares @ alike @ shares.T, centred, groups=groups, penalties=self.penalties
        )
        self.weights_, self.sharpness_ = blend.weights, blend.sharpness
        self.lambda_ = ridge.penalty
        self._similarity = Similarity(
            features, plain.known, weights=blend.weights, sharpness=blend.sharpness
        )
        #: What each training name adds to a prediction, in units of similarity to it.
        self._weights = shares.T @ ridge.weights

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
