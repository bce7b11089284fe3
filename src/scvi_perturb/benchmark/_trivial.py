"""The trivial predictions that every table carries."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from scvi_perturb import predictors as p
from scvi_perturb.benchmark._method import Method
from scvi_perturb.benchmark._summary import SHIFTED

if TYPE_CHECKING:
    from scvi_perturb.benchmark._method import Setting
    from scvi_perturb.predictors import MeanPredictor, Predictor
    from scvi_perturb.predictors._profiles import Profile

__all__ = ["TRIVIAL", "best_mean"]

_BOTH: Any = ("counts", "effects")
_OVER_CONTEXTS: Final = ("unseen_context", "context_transfer")


def best_mean(setting: Setting, profile: Profile) -> MeanPredictor:
    """Return the trivial mean around which trivial cells are put: a good one of its kind."""
    everywhere = p.ContextMean("perturbations", profile=profile)
    first: dict[str, MeanPredictor] = {
        "unseen_combination": p.FirstKnown(
            p.Additive(profile=profile), p.MatchingMean(profile=profile)
        ),
        "dose": p.FirstKnown(p.DoseLine(profile=profile), everywhere),
        # what is shown of it in its own context, else in the others
        "context_transfer": p.FirstKnown(p.Additive(profile=profile), everywhere),
        "unseen_context": p.ContextMean("contexts", profile=profile),
        "cells": p.Additive(profile=profile),
    }
    if setting.kind in first:
        return first[setting.kind]
    if setting.features is None:
        return everywhere
    return p.FirstKnown(p.LatentAdditive(setting.features, profile=profile), everywhere)


def _no_change(setting: Setting) -> Predictor:
    return p.NoChange(profile=setting.profile)


def _context_mean(setting: Setting) -> Predictor:
    if setting.values == "effects":
        return p.ContextMean("all", profile="effects")
    over = "contexts" if setting.kind in _OVER_CONTEXTS else "perturbations"
    return p.ContextMean(over, profile=setting.profile)  # type: ignore[arg-type]


def _mean_in_context(setting: Setting) -> Predictor:
    return p.ContextMean("perturbations", profile=setting.profile)


def _plain(setting: Setting, cls: type[Any]) -> Predictor:
    made: Predictor = cls(profile=setting.profile)
    return made


def _with_features(setting: Setting, cls: type[Any]) -> Predictor:
    made: Predictor = cls(setting.features, profile=setting.profile)
    return made


def _dose_line(setting: Setting, form: Any) -> Predictor:  # noqa: ANN401
    return p.DoseLine(form, profile=setting.profile)


def _unchanged_cells(setting: Setting) -> Predictor:
    del setting
    return p.ShiftedControl(p.NoChange(profile="cell_mean"))


def _shifted(setting: Setting) -> Predictor:
    return p.ShiftedControl(best_mean(setting, "cell_mean"))


def _negative_binomial(setting: Setting) -> Predictor:
    return p.NegativeBinomialMean(best_mean(setting, "pseudobulk"))


def _nearest_cells(setting: Setting) -> Predictor:
    return p.NearestCells(setting.features)


_COMBINATIONS: Any = ("unseen_combination",)
_UNSEEN: Any = ("unseen_perturbation",)

#: Trivial predictions by what they predict: means, then cells.
TRIVIAL: Final = (
    Method(name="no_change", make=_no_change, role="mean", values=_BOTH),
    Method(
        name="context_mean",
        title="mean of training",
        make=_context_mean,
        role="mean",
        values=_BOTH,
        kinds=(
            "unseen_context",
            "context_transfer",
            "unseen_perturbation",
            "unseen_combination",
            "dose",
        ),
    ),
    Method(
        name="mean_in_context",
        title="mean of training in the context",
        make=_mean_in_context,
        role="mean",
        values=_BOTH,
        kinds=("context_transfer",),
    ),
    Method(
        name="matching_mean",
        make=partial(_plain, cls=p.MatchingMean),
        role="mean",
        values=_BOTH,
        kinds=_COMBINATIONS,
    ),
    Method(
        name="additive",
        make=partial(_plain, cls=p.Additive),
        role="mean",
        values=_BOTH,
        kinds=("unseen_combination", "context_transfer", "cells"),
    ),
    Method(
        name="latent_additive",
        make=partial(_plain, cls=p.LatentAdditive),
        role="mean",
        values=_BOTH,
        kinds=_COMBINATIONS,
    ),
    Method(
        name="latent_additive_features",
        title="latent additive, features",
        make=partial(_with_features, cls=p.LatentAdditive),
        role="mean",
        values=_BOTH,
        kinds=_UNSEEN,
        needs_features=True,
    ),
    Method(
        name="dose_line",
        make=partial(_dose_line, form="log_linear"),
        role="mean",
        values=_BOTH,
        kinds=("dose",),
    ),
    Method(
        name="dose_hill",
        title="Hill curve",
        make=partial(_dose_line, form="hill"),
        role="mean",
        values=_BOTH,
        kinds=("dose",),
    ),
    *(
        Method(
            name=cls.name,
            title=title,
            make=partial(_with_features, cls=cls),
            role="mean",
            values=_BOTH,
            kinds=("unseen_perturbation", "unseen_combination"),
            needs_features=True,
        )
        for cls, title in (
            (p.PCARidge, "PCA ridge"),
            (p.KernelRidge, "kernel ridge"),
            (p.NearestPerturbation, "nearest perturbation"),
        )
    ),
    Method(
        name="control_cells",
        title="control cells",
        make=_unchanged_cells,
        role="cells",
    ),
    Method(name=SHIFTED, title="shifted control cells", make=_shifted, role="cells"),
    Method(
        name="negative_binomial_mean",
        title="NB around the mean",
        make=_negative_binomial,
        role="cells",
    ),
    Method(
        name="nearest_cells",
        title="nearest condition's cells",
        make=_nearest_cells,
        role="cells",
    ),
)
