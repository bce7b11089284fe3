"""How the hybrid makes its stage one: which predictors, asked which question, on which cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from anndata import AnnData

from scvi_perturb._errors import SchemaError
from scvi_perturb.model._diffusion import PerturbDiffusion
from scvi_perturb.model._generator_member import GeneratorMember
from scvi_perturb.model._stage_one import GENERATOR
from scvi_perturb.predictors import MeanPredictor, StackedMean
from scvi_perturb.predictors._given import GivenMeans
from scvi_perturb.predictors._outside import OutsidePredictor
from scvi_perturb.predictors._profiles import TrainingProfiles
from scvi_perturb.predictors._questions import QUESTIONS, folds_of
from scvi_perturb.predictors._stack_fit import treated_rows

if TYPE_CHECKING:
    from scvi_perturb.data import Split
    from scvi_perturb.model._fit import Parts
    from scvi_perturb.predictors import Predictor
    from scvi_perturb.predictors._questions import Question

__all__ = ["fit_stage_one", "likely_questions"]

#: Questions that a split holds out.
_OF_SPLIT: dict[str, tuple[Question, ...]] = {
    "unseen_context": ("unseen_context",),
    "context_transfer": ("context_transfer",),
    "unseen_combination": ("unseen_combination",),
    "unseen_perturbation": ("unseen_perturbation",),
    "dose": ("dose", "dose_beyond"),
    "cells": ("seen",),
}


def fit_stage_one(
    model: PerturbDiffusion,
    mean: Predictor | AnnData | None,
    adata: AnnData,
    parts: Parts,
    *,
    split: Split | None,
    n_refits: int,
    refit_options: dict[str, Any],
) -> StackedMean:
    """Fit the predictors of the mean to the cells that may be seen.

    Parameters
    ----------
    model
        The trained generator.
    mean
        Predictor or table of the user's; None for the stack of the package.
    adata, parts
        Cells, and which of them are seen.
    split
        Given to `train`, which says what will be asked; or None.
    n_refits
        Refits of the generator.
    refit_options
        Arguments of `train` for these.
    """
    seed = refit_options["seed"]
    features = model._vocabulary.features
    profiles = _profiles(model, adata, split)
    if mean is not None:
        if isinstance(mean, StackedMean):
            return mean.fit_profiles(profiles)
        own = _own_mean(mean, model, adata, split)
        return StackedMean(members={own.name: own}, seed=seed).fit_profiles(profiles)
    generator = GeneratorMember(
        lambda cells: _like(model, cells), adata, parts, model, n_refits, refit_options
    )
    stack = StackedMean(features, seed=seed, outside={GENERATOR: generator})
    stack.fit_profiles(profiles)
    for question in likely_questions(stack, split):
        stack.weigh(question)
    stack.outside = {}  # not to be saved, and not to be asked again
    return stack


def _profiles(model: PerturbDiffusion, adata: AnnData, split: Split | None) -> TrainingProfiles:
    screen = model._screen
    library = None
    if screen.library_key is not None:
        library = adata.obs[screen.library_key].to_numpy(np.float64)
    return TrainingProfiles.from_screen(
        adata,
        split,
        keys=screen.keys,
        context_keys=screen.context_columns,
        layer=screen.layer,
        kind="pseudobulk",
        with_variances=True,
        library=library,
    )


def _own_mean(
    mean: Predictor | AnnData, model: PerturbDiffusion, adata: AnnData, split: Split | None
) -> MeanPredictor:
    """Return the user's stage one as a predictor of changes.

    Raises
    ------
    SchemaError
        If it predicts other profiles than the model's.
    """
    if isinstance(mean, AnnData):
        return GivenMeans(mean)
    screen = model._screen
    if not isinstance(mean, MeanPredictor):
        return OutsidePredictor(
            mean.fit(
                adata,
                split,
                keys=screen.keys,
                context_keys=screen.context_columns,
                layer=screen.layer,
            )
        )
    if mean.profile != "pseudobulk":
        msg = f"`mean` predicts {mean.profile!r} profiles; the model needs 'pseudobulk'."
        raise SchemaError(msg)
    return mean


def likely_questions(stack: StackedMean, split: Split | None) -> tuple[Question, ...]:
    """Return what will be asked: what the split holds out, or else the first that can be tried.

    In the order: combinations, doses, contexts, other contexts, perturbations.
    """
    if split is not None:
        return _OF_SPLIT.get(split.kind, ())
    rows, _ = treated_rows(stack.profiles)
    order = ("unseen_combination", "dose", "unseen_context", "context_transfer")
    for question in (*order, *QUESTIONS):
        if len(folds_of(question, rows, n_folds=stack.n_folds, seed=stack.seed)) > 1:  # type: ignore[arg-type]
            return (question,)  # type: ignore[return-value]
    return ()


def _like(model: PerturbDiffusion, cells: AnnData) -> PerturbDiffusion:
    """Return a generator with the arguments of a model, for other cells."""
    arguments = model.init_params_["non_kwargs"]
    own = {
        name: arguments[name]
        for name in ("n_latent", "n_hidden", "n_layers", "likelihood", "dispersion", "seed")
    }
    if own["likelihood"] == "normal":
        own["likelihood"], own["space"] = "nb", "log1p"
    screen = model._screen
    PerturbDiffusion.setup_anndata(
        cells,
        layer=screen.layer,
        perturbation_key=screen.keys.perturbation,
        control=screen.keys.control,
        dose_key=screen.keys.dose,
        time_key=screen.keys.time,
        perturbation_type_key=screen.keys.kind,
        context_keys=list(screen.context_columns),
        batch_key=screen.batch_column,
        library_key=screen.library_key,
        separator=screen.keys.separator,
    )
    return PerturbDiffusion(
        cells, diffusion=model.diffusion, features=model._vocabulary.features, **own
    )
