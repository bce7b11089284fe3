"""`train` of models in two stages: the representation, then the generator in its latent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._constants import CONDITION_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb.model._base import PerturbationModel
from scvi_perturb.model._fit import Fit, Parts
from scvi_perturb.model._library import library_shifts
from scvi_perturb.train import TrainConfig

if TYPE_CHECKING:
    from scvi_perturb.data import ScreenReader, Split
    from scvi_perturb.module import DiffusionConfig, TwoStageModule

__all__ = ["TwoStageTraining"]


class TwoStageTraining(PerturbationModel):
    """`train` of models with a representation and a generator."""

    module: TwoStageModule
    diffusion: DiffusionConfig
    #: Arguments of scVI's module where stage one is a trained scVI.
    scvi_settings_: dict[str, Any] | None
    #: Codes of condition and context with training cells.
    trained_pairs_: list[tuple[int, int]]
    #: Steps of stage two that the held-out conditions asked for, if they were asked.
    n_steps_: int | None

    def train(
        self,
        max_epochs: int | None = None,
        *,
        split: Split | None = None,
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        checkpoint_dir: str | Path | None = None,
        config: TrainConfig | None = None,
        **trainer_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train both stages.

        Parameters
        ----------
        max_epochs
            Epochs of stage one at most; None chooses by the number of cells. It stops before
            when the validation loss no longer falls, with the best weights.
        split
            Which cells train, validate and are held out, see :func:`scvi_perturb.data.split`;
            None validates on a tenth of the cells.
        n_steps
            Steps of stage two. None chooses them by the error on conditions held out from the
            training cells, then trains on all of them for as many steps: the error on held-out
            *cells* of trained conditions goes on falling long after that on conditions rises.
        batch_size
            Cells a batch in stage one.
        seed
            Seed of order, noise and dropout.
        checkpoint_dir
            Where the state of the run is written; calling `train` again with the same folder
            after a kill goes on where it stopped. Empty it to start anew.
        config
            Optimisation and stopping.
        **trainer_kwargs
            For scvi-tools' Trainer: `accelerator`, `devices`, `strategy`, `enable_progress_bar`,
            `precision`, ...

        Raises
        ------
        SchemaError
            When the model has no data, or the training cells hold no control or no treated cell.
        """
        reader = self._reader(None)
        parts = self._parts(split, len(reader), seed)
        self._check_parts(reader, parts.train)
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        fit = Fit(self, reader, parts, config or TrainConfig(), trainer_kwargs, folder)
        if self.scvi_settings_ is None:
            fit.representation(max_epochs, batch_size=batch_size, seed=seed)
        fit.generator(n_steps, seed=seed)
        self.train_indices, self.validation_indices = parts.train, parts.validation
        self.test_indices = parts.test
        self.library_shifts_ = library_shifts(reader.codes, reader.library_sizes(), parts.train)
        self.is_trained_ = True
        self.trained_on_ = {
            "n_cells": len(parts.train),
            "n_genes": len(self._screen.genes),
            "seed": seed,
            "split": "random" if split is None else split.kind,
            "split_seed": seed if split is None else split.seed,
            "data_hash": "" if split is None else split.data_hash,
        }

    def _parts(self, split: Split | None, n_cells: int, seed: int) -> Parts:
        if split is not None:
            split.check(self._plain_adata())
            return Parts(*(np.array(p) for p in (split.train, split.validation, split.test)))
        order = np.random.default_rng(seed).permutation(n_cells)
        n_validation = n_cells // 10
        return Parts(np.sort(order[n_validation:]), np.sort(order[:n_validation]), order[:0])

    def _check_parts(self, reader: ScreenReader, train: np.ndarray) -> None:
        is_control = reader.codes[CONDITION_KEY][train] == 0
        if is_control.all() or not is_control.any():
            found = "no treated cell" if is_control.all() else "no control cell"
            msg = f"The {len(train)} training cells hold {found}; both are needed to learn effects."
            raise SchemaError(msg)
        if reader.codes[CONDITION_KEY].max() >= len(self._screen.table):
            msg = "The data hold conditions that the model was not made with; make a new model."
            raise SchemaError(msg)
