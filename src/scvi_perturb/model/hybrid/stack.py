"""The stack of a hybrid: predictors, and the generator as a member."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._core import Key, SchemaError
from scvi_perturb.model.hybrid.recentred import GENERATOR
from scvi_perturb.model.latent.model import LatentModel
from scvi_perturb.module.autoencoder import AutoencoderConfig
from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.predictors.external import ExternalPredictor
from scvi_perturb.predictors.profiles import TrainingProfiles
from scvi_perturb.predictors.stack.stacked_mean import StackedMean

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from scvi_perturb.data.request import RequestRow, RequestScenario
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.model.base.training import CellSplit
    from scvi_perturb.module.generator import GeneratorConfig
    from scvi_perturb.predictors.request import Predictor
    from scvi_perturb.predictors.stack.scenarios import Fold


@dataclass
class GeneratorMember:
    """Answers for the generator when the stack asks what it would have predicted.

    The representation has to be refitted too: an autoencoder that saw the cells decodes them nearly
    without error, and the generator would get all the weight. That is dear, so folds are joined to
    a few; the number of steps is that of the model itself.

    `make`: Returns a new model of these cells, with the same arguments. `adata`, `parts`: Cells of
    training, and those that may be seen. `model`: The model that the steps were chosen for.
    `n_refits`: Refits at most; 0 takes no part. `train_options`: For `train` of each refit.
    """

    make: Callable[[AnnData], LatentModel]
    adata: AnnData
    parts: CellSplit
    model: LatentModel
    n_refits: int
    train_options: dict[str, Any] = field(default_factory=dict)

    def left_out(
        self, scenario: RequestScenario, rows: Sequence[RequestRow], folds: Sequence[Fold]
    ) -> list[np.ndarray] | None:
        """Return the changes of each fold's asked rows; None without refits."""
        del scenario
        if self.n_refits < 1:
            return None
        made: list[np.ndarray | None] = [None] * len(folds)
        n = min(self.n_refits, len(folds))
        for joined in (range(i, len(folds), n) for i in range(n)):  # large folds with small
            removed = {rows[i] for k in joined for i in folds[k].removed}
            asked = [rows[i] for k in joined for i in folds[k].asked]
            changes = self._refit(removed, asked)
            ends = np.cumsum([len(folds[k].asked) for k in joined])[:-1]
            for k, part in zip(joined, np.split(changes, ends), strict=True):
                made[k] = part
        return [part for part in made if part is not None]

    def _refit(self, removed: set[RequestRow], asked: list[RequestRow]) -> np.ndarray:
        """Return the changes that a model without some rows predicts for others."""
        screen = self.model._screen
        reader = self.model._reader(None)
        seen = np.sort(np.concatenate([self.parts.train, self.parts.validation]))
        of_condition, of_context = (reader.codes[key][seen] for key in (Key.CONDITION, Key.CONTEXT))
        gone = {(row.condition, row.context) for row in removed}
        pairs, place = np.unique([of_condition, of_context], axis=1, return_inverse=True)
        keep = [(screen.table.conditions[c], screen.contexts[x]) not in gone for c, x in pairs.T]
        cells = self.adata[seen[np.array(keep)[place.ravel()]]]
        cells = cells.to_memory() if cells.isbacked else cells.copy()
        cells.uns = {}  # nothing of how the screen itself is registered
        refit = self.make(cells)
        refit.train(**self.train_options)
        table = screen.table.frame([row.condition for row in asked])
        keys = screen.keys
        roles = {"perturbation": keys.perturbation, "dose": keys.dose, "time": keys.time,
                 "perturbation_type": keys.kind}  # fmt: skip
        frame = table.rename(columns={k: v for k, v in roles.items() if v is not None})
        frame = frame[[v for v in roles.values() if v is not None]].reset_index(drop=True)
        for i, column in enumerate(screen.keys.context):
            frame[column] = [row.context[i] for row in asked]
        changes: np.ndarray = refit.predict(frame, seed=0).layers["lfc"].astype(np.float64)
        return changes


#: Questions that a split holds out.
_OF_SPLIT: dict[str, tuple[RequestScenario, ...]] = {
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
    parts: CellSplit,
    *,
    split: Split | None,
    n_refits: int,
    refit_options: dict[str, Any],
) -> StackedMean:
    """Fit the package's predictors of the mean to the cells that may be seen.

    `model`: The trained generator. `adata`, `parts`: Cells, and which of them are seen. `split`:
    Given to `train`, which says what will be asked; or None. `n_refits`: Refits of the generator.
    `refit_options`: Arguments of `train` for these.
    """
    generator = GeneratorMember(
        lambda cells: _like(model, cells), adata, parts, model, n_refits, refit_options
    )
    stack = StackedMean(
        model._vocabulary.features, seed=refit_options["seed"], external={GENERATOR: generator}
    )
    _weigh(stack.fit_profiles(_profiles(model, adata, split)), split)
    stack.external = {}  # not to be saved, and not to be asked again
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

    Raises `SchemaError`: If it predicts other profiles than the model's, or does not fit the
    screen.
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
) -> ExternalPredictor:
    screen = model._screen
    return ExternalPredictor(mean.fit(adata, split, keys=screen.keys))


def _weigh(stack: StackedMean, split: Split | None) -> None:
    """Fit the members, and weigh them for what will be asked."""
    for scenario in likely_scenarios(stack, split) or ("seen",):
        stack.weigh(scenario)


def _profiles(model: LatentModel, adata: AnnData, split: Split | None) -> TrainingProfiles:
    screen = model._screen
    library = None
    if screen.keys.library is not None:
        library = adata.obs[screen.keys.library].to_numpy(np.float64)
    return TrainingProfiles.from_screen(
        adata,
        split,
        keys=screen.keys,
        kind="pseudobulk",
        with_variances=True,
        library=library,
    )


def likely_scenarios(stack: StackedMean, split: Split | None) -> tuple[RequestScenario, ...]:
    """Return what will be asked: what the split holds out, or else the first that can be tried."""
    if split is not None:
        return _OF_SPLIT.get(split.kind, ())
    scenario = stack.likely_scenario()
    return () if scenario is None else (scenario,)


class _Refit(LatentModel):
    """The generator of a hybrid, alone."""

    def __init__(
        self,
        adata: AnnData,
        *,
        stage_one: AutoencoderConfig,
        stage_two: GeneratorConfig,
        features: PerturbationFeatures | None,
        seed: int,
    ) -> None:
        super().__init__(adata, None, features)
        self._build(stage_one, stage_two, seed=seed)
        self.init_params_ = self._get_init_params(locals())


def _like(model: LatentModel, cells: AnnData) -> LatentModel:
    """Return a generator with the arguments of a model, for other cells."""
    arguments, screen = model.init_params_["non_kwargs"], model._screen
    names = ("n_latent", "n_hidden", "n_layers", "likelihood", "dispersion")
    _Refit.setup_anndata(
        cells,
        layer=screen.keys.layer,
        perturbation_key=screen.keys.perturbation,
        control=screen.keys.control,
        dose_key=screen.keys.dose,
        time_key=screen.keys.time,
        perturbation_type_key=screen.keys.kind,
        context_keys=list(screen.keys.context),
        batch_key=screen.keys.batch,
        library_key=screen.keys.library,
        separator=screen.keys.separator,
    )
    return _Refit(
        cells,
        stage_one=AutoencoderConfig(**{name: arguments[name] for name in names}),
        stage_two=model.module.generator.config,
        features=model._vocabulary.features,
        seed=arguments["seed"],
    )
