"""One latent vector a component, summed: fitted to singles and combinations together."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import UnknownPerturbationError
from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.predictors.ridge import (
    PENALTIES,
    FeatureScores,
    GroupedRidge,
    Responses,
    check_penalties,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Component, Condition
    from scvi_perturb.data.request import RequestRow
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.profiles import Profile
    from scvi_perturb.predictors.request import ControlCells


@checked
class LatentAdditive(MeanPredictor):
    """Predict the sum of one latent vector for each component, learned from all conditions.

    Changes of all training conditions, single and combined, in all contexts, are projected on
    their leading components (not centred: no perturbation is no change). Ridge regression gives
    each component a vector such that those of a condition add up to its change, all conditions
    weighing alike; so a combination tells about its components, which `Additive` ignores. A
    component is a name with its kind and dose. Contexts and times share one vector.

    Without features the vectors shrink to zero, and a component that no training condition has is
    refused. With features they shrink to a linear function of these (and a constant), fitted
    along with them, so that a component never measured has one too.

    The penalty is the one of least squared error when each set of names is left out in all its
    contexts, doses, kinds and times, in closed form.

    Parameters
    ----------
    features
        What is known about perturbations, or None.
    n_components
        Number of leading components of the changes, at most the rank.
    penalties
        To choose from.
    profile
        What the mean of a population is; see `MeanPredictor`.

    Attributes
    ----------
    lambda_
        The penalty that was chosen, after `fit`.

    References
    ----------
    Wu et al., PerturBench: benchmarking machine learning models for cellular perturbation
    analysis, 2024, of whose latent additive model this is the linear version.
    """

    name: ClassVar[str] = "latent_additive"
    lambda_: float

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        n_components: int = 50,
        penalties: Sequence[float] = PENALTIES,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        self.features = features
        self.n_components = n_components
        self.penalties = check_penalties(penalties)

    def _learn(self) -> None:
        super()._learn()
        rows = Responses.gather(self.deltas, lambda _: True, who=type(self).__name__)
        self._place = {
            part: i
            for i, part in enumerate(
                dict.fromkeys(
                    part for condition in rows.conditions for part in condition.components
                )
            )
        }
        self._scores = None
        known = [part.name for part in self._place if self._has_features(part)]
        if self.features is not None and known:
            self._scores = FeatureScores.fit(self.features, known, len(known))
        _, _, axes = np.linalg.svd(rows.changes, full_matrices=False)
        axes = axes[: self.n_components]
        held = _held(rows.conditions, self._place)
        between = self._kernel(list(self._place))
        ridge = GroupedRidge.fit(
            held @ between @ held.T,
            rows.changes @ axes.T,
            groups=rows.groups(),
            penalties=self.penalties,
        )
        self._weights = held.T @ ridge.weights @ axes
        self.lambda_ = ridge.penalty

    def _has_features(self, part: Component) -> bool:
        return self.features is not None and part.name in self.features

    def _kernel(self, parts: Sequence[Component]) -> NDArray[np.float64]:
        """Return the prior covariance of the vectors of `parts` and those of training."""
        own = np.zeros((len(parts), len(self._place)))
        for i, part in enumerate(parts):
            if part in self._place:
                own[i, self._place[part]] = 1.0
        if self._scores is None:
            return own
        left, right = self._described(parts), self._described(list(self._place))
        return own + left @ right.T

    def _described(self, parts: Sequence[Component]) -> NDArray[np.float64]:
        """Return a constant and the scores of the features; zeros where there are no features."""
        scores = self._scores.of([part.name for part in parts]) if self._scores else None
        known = np.array([self._has_features(part) for part in parts], float)[:, None]
        return known if scores is None else known * np.hstack([np.ones_like(known), scores])

    def _changes(
        self, requests: Sequence[RequestRow], given: ControlCells | None
    ) -> NDArray[np.float64]:
        del given
        conditions = [request.condition for request in requests]
        for condition in conditions:
            self._refuse_unknown(condition)
        parts = dict.fromkeys(part for c in conditions for part in c.components)
        held = _held(conditions, {part: i for i, part in enumerate(parts)})
        made: NDArray[np.float64] = held @ (self._kernel(list(parts)) @ self._weights)
        return made

    def _refuse_unknown(self, condition: Condition) -> None:
        for part in condition.components:
            if part in self._place or (self._scores is not None and self._has_features(part)):
                continue
            known = [str(type(condition)((other,))) for other in self._place]
            label = str(type(condition)((part,)))
            raise UnknownPerturbationError(label, known)


def _held(conditions: Sequence[Condition], place: Mapping[Component, int]) -> NDArray[np.float64]:
    """Return which components each condition has, 0 or 1, `(n_conditions, n_components)`."""
    held = np.zeros((len(conditions), len(place)))
    for i, condition in enumerate(conditions):
        held[i, [place[part] for part in condition.components]] = 1.0
    return held
