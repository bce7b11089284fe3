"""Who is in the stack: the regression, and the trivial predictions that answer a scenario."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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
    from collections.abc import Mapping

    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.base import MeanPredictor
    from scvi_perturb.predictors.gaussian_process.condition_gp import LeaveOut
    from scvi_perturb.predictors.profiles import Profile
    from scvi_perturb.predictors.stack.scenarios import RequestScenario


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


def fallback(scenario: RequestScenario) -> tuple[str, ...]:
    """Return who shares the weight where training has nothing to try the scenario on."""
    second: dict[RequestScenario, tuple[str, ...]] = {
        "unseen_context": ("context_mean",),
        "context_transfer": ("context_mean",),
        "unseen_combination": ("additive",),
        "dose": ("dose_line",),
        "dose_beyond": ("dose_hill",),
        "unseen_perturbation": ("mean_of_training",),
    }
    return ("condition_gp", *second.get(scenario, ()))
