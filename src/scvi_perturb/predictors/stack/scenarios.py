"""Scenarios that a stack is asked in, and its usual members."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from scvi_perturb.data.request import RequestScenario, TrainingCoverage
from scvi_perturb.predictors.baselines import (
    Additive,
    ContextMean,
    DoseLine,
    MatchingMean,
    NearestPerturbation,
    NoChange,
)
from scvi_perturb.predictors.forest import FeatureForest, measured_modalities
from scvi_perturb.predictors.gaussian_process.condition_gp import ConditionGP
from scvi_perturb.predictors.latent_additive import LatentAdditive
from scvi_perturb.predictors.ridge import BlendedKernelRidge, PCARidge

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.request import RequestRow
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.base import MeanPredictor
    from scvi_perturb.predictors.gaussian_process.condition_gp import LeaveOut
    from scvi_perturb.predictors.profiles import Profile


#: What an answer calls it; "control" is no change.
AnsweredScenario = RequestScenario | Literal["control"]

SCENARIOS: Final[tuple[RequestScenario, ...]] = get_args(RequestScenario)


@dataclass(frozen=True, slots=True)
class Fold:
    """Training rows taken away together, and those of them that are then in the scenario."""

    removed: NDArray[np.intp]
    asked: NDArray[np.intp]


def folds_of(
    scenario: RequestScenario, rows: Sequence[RequestRow], *, n_folds: int, seed: int | None
) -> list[Fold]:
    """Return folds of training rows that are in a scenario, seen from the rest.

    Contexts are left out one at a time, for `unseen_context`, if there are twice `n_folds` of them
    at most; else, and for other scenarios, rows, conditions or names are dealt to `n_folds` at
    random. Of doses those alone, if there are any, without which their name still has as many as
    another name of training: as one has of which a dose is asked. Folds that leave nothing to ask,
    or nothing to learn from, are dropped.
    """
    groups = _groups(scenario, rows)
    n = len(groups) if scenario == "unseen_context" and len(groups) <= 2 * n_folds else n_folds
    order = np.random.default_rng(seed).permutation(len(groups))
    made = []
    for part in np.array_split(order, max(min(n, len(groups)), 1)):
        removed = np.unique([row for i in part for row in groups[i]]).astype(np.intp)
        if 0 < len(removed) < len(rows):
            gone = set(removed.tolist())
            seen = TrainingCoverage.of(row for i, row in enumerate(rows) if i not in gone)
            asked = [i for i in removed.tolist() if seen.scenario(rows[i]) == scenario]
            made.append(Fold(removed, np.array(asked, dtype=np.intp)))
    return [fold for fold in made if len(fold.asked)]


def likely_scenario(
    rows: Sequence[RequestRow], *, n_folds: int, seed: int | None, has_features: bool
) -> RequestScenario | None:
    """Return the first scenario that can be tried on training, None if there is none.

    In the order: perturbations where features tell of them, combinations, doses, contexts.
    """
    order: tuple[RequestScenario, ...] = ("unseen_combination", "dose", "unseen_context",
                                   "context_transfer", "dose_beyond")  # fmt: skip
    for scenario in ("unseen_perturbation", *order) if has_features else order:
        if len(folds_of(scenario, rows, n_folds=n_folds, seed=seed)) > 1:
            return scenario
    return None


def unit_of(scenario: RequestScenario, row: RequestRow) -> Hashable:
    """Return what a left-out row is exchangeable with others by: its context, or its condition."""
    return row.context if scenario == "unseen_context" else row.condition


def _groups(scenario: RequestScenario, rows: Sequence[RequestRow]) -> list[list[int]]:
    """Return the rows of what is left out together, in the order of first rows."""
    found: dict[Hashable, list[int]] = {}
    for i, row in enumerate(rows):
        for key in _keys(scenario, row):
            found.setdefault(key, []).append(i)
    if scenario not in ("dose", "dose_beyond"):
        return list(found.values())
    ranges = TrainingCoverage.of(rows).doses

    def wanted(place: int) -> bool:
        (part,) = rows[place].condition.components
        low, high = ranges[part.name, part.kind]
        return low < part.dose < high if scenario == "dose" else low < part.dose == high

    return _like_asked([own for own in found.values() if wanted(own[0])], rows)


def _like_asked(groups: list[list[int]], rows: Sequence[RequestRow]) -> list[list[int]]:
    """Keep the doses without which their name has as many as some other name has."""
    # with fewer left than what is asked will have, errors would look too large
    seen: dict[tuple[str, str], set[float]] = {}
    for part in (part for row in rows for part in row.condition.components):
        seen.setdefault((part.name, part.kind), set()).add(part.dose)
    fewest = min((len(own) for own in seen.values() if len(own) > 1), default=0)

    def left(group: list[int]) -> int:
        (part,) = rows[group[0]].condition.components
        return len(seen[part.name, part.kind]) - 1

    return [own for own in groups if left(own) >= fewest] or groups


def _keys(scenario: RequestScenario, row: RequestRow) -> Iterable[Hashable]:
    parts = row.condition.components
    if scenario == "unseen_context":
        return [row.context]
    if scenario == "context_transfer":
        return [row]
    if scenario == "unseen_combination":
        return [row.condition] if len(parts) > 1 else []
    if scenario == "unseen_perturbation":
        return dict.fromkeys(part.name for part in parts)  # a set has no order
    if scenario in ("dose", "dose_beyond"):
        return [row.condition] if len(parts) == 1 else []
    return []


#: What the regression leaves out together, so that it is tuned for the scenario.
_LEAVE_OUT: Final[Mapping[RequestScenario, LeaveOut]] = {
    "seen": "auto",
    "unseen_context": "context",
    "context_transfer": "row",
    "unseen_combination": "condition",
    "dose": "condition",
    "dose_beyond": "condition",
    "unseen_perturbation": "perturbation",
}


def default_members(
    scenario: RequestScenario, features: PerturbationFeatures | None, profile: Profile
) -> dict[str, MeanPredictor]:
    """Return the members for a scenario, unfitted, by name."""
    found: dict[str, MeanPredictor] = {
        "condition_gp": ConditionGP(features, leave_out=_LEAVE_OUT[scenario], profile=profile)
    }
    if scenario == "seen":
        return found
    found["no_change"] = NoChange(profile=profile)
    if scenario in ("unseen_context", "context_transfer"):
        found["context_mean"] = ContextMean("contexts", profile=profile)
        if scenario == "context_transfer":
            found["mean_in_context"] = ContextMean("perturbations", profile=profile)
        return found
    found["mean_of_training"] = ContextMean("all", profile=profile)
    if profile != "effects":
        found["mean_in_context"] = ContextMean("perturbations", profile=profile)
    if scenario == "unseen_combination":
        found["additive"] = Additive(profile=profile)
        found["matching_mean"] = MatchingMean(profile=profile)
        found["latent_additive"] = LatentAdditive(features, profile=profile)
    if scenario in ("dose", "dose_beyond"):
        found["dose_line"] = DoseLine("log_linear", profile=profile)
        found["dose_hill"] = DoseLine("hill", profile=profile)
    if features is not None and scenario in ("unseen_combination", "unseen_perturbation"):
        found["pca_ridge"] = PCARidge(features, profile=profile)
        found["blended_kernel_ridge"] = BlendedKernelRidge(features, profile=profile)
        found["nearest_perturbation"] = NearestPerturbation(features, profile=profile)
    if features is not None and scenario == "unseen_perturbation":
        found["latent_additive"] = LatentAdditive(features, profile=profile)
        if measured_modalities(features):
            found["feature_forest"] = FeatureForest(features, profile=profile)
    return found
