"""Which training condition, in which context, stands in for what was asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._errors import UnknownPerturbationError
from scvi_perturb.predictors._profiles import agrees
from scvi_perturb.predictors._similarity import Similarity, covered, names_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Component, Condition
    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._profiles import TrainingProfiles
    from scvi_perturb.predictors._requests import Context

__all__ = ["NearestCondition", "nearest_contexts"]


class NearestCondition:
    """Finds the training condition nearest to any other.

    Parameters
    ----------
    conditions
        Treated conditions of training.
    features
        What is known about perturbations, or None.
    """

    def __init__(
        self, conditions: Sequence[Condition], features: PerturbationFeatures | None
    ) -> None:
        self.conditions = sorted(set(conditions), key=_order)
        self._described = [c for c in self.conditions if features and covered(c, features)]
        self._similarity = Similarity(features, names_in(self._described)) if features else None

    def of(self, asked: Condition) -> Condition:
        """Return the nearest condition; see `NearestCells` for what is near.

        Raises
        ------
        UnknownPerturbationError
            If no component is shared with training and features do not help.
        """
        sharing = [c for c in self.conditions if _identities(c) & _identities(asked)]
        if sharing:
            return min(sharing, key=lambda c: (*_not_shared(asked, c), *_farther(asked, c)))
        similar = self._similar(asked)
        return min(similar, key=lambda c: (len(c.components), *_farther(asked, c)))

    def _similar(self, asked: Condition) -> list[Condition]:
        """Return the conditions whose features are most similar."""
        if self._similarity is None or not self._described:
            raise UnknownPerturbationError(str(asked), map(str, self.conditions))
        for part in asked.components:
            if part.name not in self._similarity.features:
                raise UnknownPerturbationError(part.name, self._similarity.features.names)
        _, shared = self._similarity.between(names_in([asked]))
        if not shared.any():
            raise UnknownPerturbationError(str(asked), map(str, self._described))
        shares = self._similarity.shares(self._described)
        similarity = (self._similarity.of([asked]) @ shares.T)[0]
        best = np.flatnonzero(similarity >= similarity.max() - 1e-9)
        return [self._described[i] for i in best]


def nearest_contexts(
    profiles: TrainingProfiles,
    contexts: Sequence[Context],
    asked: Context,
    control: NDArray[np.float64],
) -> list[Context]:
    """Return the contexts to take cells from, among those where a condition was measured.

    Those that agree with what was asked; if none does, the one whose training control profile has
    the least Euclidean distance to `control`, the first by name of those at the same distance.

    Parameters
    ----------
    profiles
        What was learned.
    contexts
        Where the condition was measured.
    asked
        The context asked for.
    control
        Control profile of the context asked for, `(n_genes,)`.
    """
    here = [own for own in contexts if agrees(asked, own)]
    if here:
        return here

    def distance(own: Context) -> float:
        known = bool(profiles.controls(own))
        return float(np.linalg.norm(profiles.control_profile(own) - control)) if known else np.inf

    return [min(sorted(contexts, key=str), key=distance)]


def _identities(condition: Condition) -> set[tuple[str, str]]:
    return {(part.name, part.kind) for part in condition.components}


def _not_shared(asked: Condition, other: Condition) -> tuple[int, int]:
    """Return how many components are missing, and how many are too many."""
    own, there = _identities(asked), _identities(other)
    return len(own - there), len(there - own)


def _farther(asked: Condition, other: Condition) -> tuple[float, float, tuple[object, ...]]:
    """Return distances in dose and time, and what puts ties in order."""
    doses = {(part.name, part.kind): part.dose for part in other.components}
    common = [part for part in asked.components if (part.name, part.kind) in doses]
    if common:
        gaps = [_gap(part.dose, doses[part.name, part.kind]) for part in common]
    else:
        gaps = [_gap(_mean_dose(asked.components), _mean_dose(other.components))]
    # Times may not be recorded on one side: that is no distance.
    apart = 0.0
    if asked.time is not None and other.time is not None:
        apart = abs(asked.time - other.time)
    return round(sum(gaps), 9), apart, _order(other)


def _gap(dose: float, other: float) -> float:
    return float(abs(np.log(dose / other)))


def _mean_dose(parts: Sequence[Component]) -> float:
    """Return the geometric mean of doses."""
    return float(np.exp(np.mean([np.log(part.dose) for part in parts])))


def _order(condition: Condition) -> tuple[object, ...]:
    """Return a key that sorts by names, kinds, doses and time."""
    parts = tuple((part.name, part.kind, part.dose) for part in condition.components)
    return parts, -1.0 if condition.time is None else condition.time
