"""How the hybrid makes its stage one: which predictors, asked which question, on which cells."""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._errors import SchemaError
from scvi_perturb.model._diffusion import PerturbDiffusion
from scvi_perturb.model._flow import PerturbFlow
from scvi_perturb.model._generator_member import GeneratorMember
from scvi_perturb.model._stage_one import GENERATOR
from scvi_perturb.module import FlowConfig
from scvi_perturb.predictors import MeanPredictor, StackedMean
from scvi_perturb.predictors._outside import OutsidePredictor
from scvi_perturb.predictors._profiles import TrainingProfiles

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_perturb.data import Split
    from scvi_perturb.model._trained_on import Parts
    from scvi_perturb.model._two_stage import LatentModel
    from scvi_perturb.predictors import Predictor
    from scvi_perturb.predictors._questions import Question

__all__ = ["fit_own_mean", "fit_stack", "likely_questions"]

#: Questions that a split holds out.
_OF_SPLIT: dict[str, tuple[Question, ...]] = {
    "unseen_context": ("unseen_context",),
    "context_transfer": ("context_transfer",),
    "unseen_combination": ("unseen_combination",),
    "unseen_perturbation": ("unseen_perturbation",),
    "dose": ("dose", "dose_beyond"),
    "cells": ("seen",),
}


def fit_stack(
    model: LatentModel,
    adata: AnnData,
    parts: Parts,
    *,
    split: Split | None,
    n_refits: int,
    refit_options: dict[str, Any],
) -> StackedMean:
    """Fit the package's predictors of the mean to the cells that may be seen.

    Parameters
    ----------
    model
        The trained generator.
    adata, parts
        Cells, and which of them are seen.
    split
        Given to `train`, which says what will be asked; or None.
    n_refits
        Refits of the generator.
    refit_options
        Arguments of `train` for these.
    """
    generator = GeneratorMember(
        lambda cells: _like(model, cells), adata, parts, model, n_refits, refit_options
    )
    stack = StackedMean(
        model._vocabulary.features, seed=refit_options["seed"], outside={GENERATOR: generator}
    )
    _weigh(stack.fit_profiles(_profiles(model, adata, split)), split)
    stack.outside = {}  # not to be saved, and not to be asked again
    return stack


def fit_own_mean(
    model: LatentModel,
    mean: Predictor,
    adata: AnnData,
    split: Split | None,
    *,
    seed: int,
) -> StackedMean:
    """Fit the user's stage one to the cells that may be seen, and learn its errors.

    Raises
    ------
    SchemaError
        If it predicts other profiles than the model's, or does not fit the screen.
    """
    if isinstance(mean, MeanPredictor) and mean.profile != "pseudobulk":
        msg = f"`mean` predicts {mean.profile!r} profiles; the model needs 'pseudobulk'."
        raise SchemaError(msg)
    if isinstance(mean, StackedMean):
        stack = copy(mean)
    else:
        own = mean if isinstance(mean, MeanPredictor) else _outside(mean, model, adata, split)
        stack = StackedMean(members={own.name: own}, seed=seed)
    _weigh(stack.fit_profiles(_profiles(model, adata, split)), split)
    return stack


def _outside(
    mean: Predictor, model: LatentModel, adata: AnnData, split: Split | None
) -> OutsidePredictor:
    screen = model._screen
    fitted = mean.fit(
        adata, split, keys=screen.keys, context_keys=screen.context_columns, layer=screen.layer
    )
    return OutsidePredictor(fitted)


def _weigh(stack: StackedMean, split: Split | None) -> None:
    """Fit the members, and weigh them for what will be asked."""
    for question in likely_questions(stack, split) or ("seen",):
        stack.weigh(question)


def _profiles(model: LatentModel, adata: AnnData, split: Split | None) -> TrainingProfiles:
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


def likely_questions(stack: StackedMean, split: Split | None) -> tuple[Question, ...]:
    """Return what will be asked: what the split holds out, or else the first that can be tried."""
    if split is not None:
        return _OF_SPLIT.get(split.kind, ())
    question = stack.likely_question()
    return () if question is None else (question,)


def _like(model: LatentModel, cells: AnnData) -> LatentModel:
    """Return a generator with the arguments of a model, for other cells."""
    arguments = model.init_params_["non_kwargs"]
    own = {
        name: arguments[name]
        for name in ("n_latent", "n_hidden", "n_layers", "likelihood", "dispersion", "seed")
    }
    own["features"] = model._vocabulary.features
    screen, config = model._screen, model.module.generator.config
    made: type[PerturbDiffusion | PerturbFlow] = PerturbDiffusion
    if isinstance(config, FlowConfig):
        made, own["flow"] = PerturbFlow, config
    else:
        own["diffusion"] = config
        if own["likelihood"] == "normal":
            own["likelihood"], own["space"] = "nb", "log1p"
    made.setup_anndata(
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
    return made(cells, **own)
