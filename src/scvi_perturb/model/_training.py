"""Training in two stages: the representation, then the generator in its frozen latent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvi_perturb._constants import CONDITION_KEY, CONTEXT_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb._random import forked_seed
from scvi_perturb.data import ScreenDataModule, read_rows
from scvi_perturb.model._base import PerturbationModel
from scvi_perturb.model._latents import encode_cells, make_pairs
from scvi_perturb.model._vocabulary import reference_doses
from scvi_perturb.module import TwoStageModule
from scvi_perturb.train import Stage, TrainConfig, fit_stage

if TYPE_CHECKING:
    from scvi_perturb.data import ScreenReader, Split

__all__ = ["TwoStageTraining"]

#: Steps aimed at where the number of epochs is left open.
STEPS_ONE, STEPS_TWO = 1500, 1000


class TwoStageTraining(PerturbationModel):
    """`train` of models with a representation and a generator."""

    module: TwoStageModule
    scvi_settings_: dict[str, Any] | None
    trained_pairs_: list[tuple[int, int]]

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
            Epochs of stage one at most; None chooses by the number of cells.
        split
            Which cells train, validate and are held out, see :func:`scvi_perturb.data.split`;
            None validates on a tenth of the cells.
        n_steps
            Steps of stage two; None chooses the default that measured best.
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
        config = config or TrainConfig()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        reader = self._reader(None)
        train, validation, test = self._parts(split, len(reader), seed)
        self._check_parts(reader, train)
        fit = _Fit(self, reader, train, validation, config, trainer_kwargs, folder)
        with forked_seed(seed):
            if self.scvi_settings_ is None:
                fit.representation(max_epochs, batch_size, seed)
            fit.generator(n_steps, seed)
        self.train_indices, self.validation_indices, self.test_indices = train, validation, test
        self.is_trained_ = True
        self.trained_on_ = {
            "n_cells": len(train),
            "n_genes": len(self._screen.genes),
            "seed": seed,
            "split": "random" if split is None else split.kind,
            "split_seed": seed if split is None else split.seed,
            "data_hash": "" if split is None else split.data_hash,
        }

    def _parts(
        self, split: Split | None, n_cells: int, seed: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        if split is not None:
            split.check(self._plain_adata())
            return split.train, split.validation, split.test
        order = np.random.default_rng(seed).permutation(n_cells)
        n_validation = n_cells // 10
        return np.sort(order[n_validation:]), np.sort(order[:n_validation]), order[:0]

    def _check_parts(self, reader: ScreenReader, train: np.ndarray) -> None:
        is_control = reader.codes[CONDITION_KEY][train] == 0
        if is_control.all() or not is_control.any():
            found = "no treated cell" if is_control.all() else "no control cell"
            msg = f"The {len(train)} training cells hold {found}; both are needed to learn effects."
            raise SchemaError(msg)
        unknown = reader.codes[CONDITION_KEY].max() >= len(self._screen.table)
        if unknown:
            msg = "The data hold conditions that the model was not made with; make a new model."
            raise SchemaError(msg)


class _Fit:
    """One call of `train`: what its two stages share."""

    def __init__(  # noqa: PLR0913
        self,
        model: TwoStageTraining,
        reader: ScreenReader,
        train: np.ndarray,
        validation: np.ndarray,
        config: TrainConfig,
        trainer_kwargs: dict[str, Any],
        folder: Path | None,
    ) -> None:
        self.model, self.reader, self.config, self.folder = model, reader, config, folder
        self.train, self.validation = train, validation
        self.trainer_kwargs = trainer_kwargs

    def representation(self, max_epochs: int | None, batch_size: int, seed: int) -> None:
        """Train stage one on counts."""
        module = self.model.module.representation
        if not self.model.is_trained_:
            module.initialise(self._mean_proportions())
        n_batches = -(-len(self.train) // batch_size)
        epochs = max_epochs or int(np.clip(round(STEPS_ONE / n_batches), 10, 100))
        data = ScreenDataModule(
            self.reader,
            train_idx=self.train,
            val_idx=self.validation,
            batch_size=batch_size,
            seed=seed,
        )
        plan = replace(self.config.representation, n_steps=epochs * n_batches)
        stage = Stage(
            "representation",
            module,
            data,
            plan,
            epochs,
            patience=self.config.patience if self.config.early_stopping else None,
            gradient_clip=self.config.gradient_clip[0],
        )
        self._fit(stage)

    def generator(self, n_steps: int | None, seed: int) -> None:
        """Train stage two on cached latents."""
        model, codes = self.model, self.reader.codes
        module = model.module.generator
        model.module.eval()
        latents = encode_cells(
            model.module.representation, self.reader.__getitem__, len(self.reader), model._device()
        )
        pairs = make_pairs(
            latents, codes, train=self.train, config=model.diffusion, seed=seed
        )
        condition = codes[CONDITION_KEY]
        learn, check = self.train, self.validation
        if module.from_cell:
            learn, check = (part[condition[part] != 0] for part in (learn, check))
        seen_codes = np.unique(condition[self.train])
        model.trained_pairs_ = sorted(
            {(int(c), int(x)) for c, x in zip(condition[self.train], codes[CONTEXT_KEY][self.train], strict=True)}
        )
        names = model._vocabulary.names
        table = model._screen.table
        used = {(p.name, p.kind) for c in seen_codes for p in table.conditions[c].components}
        seen = torch.zeros(max(len(names), 1), dtype=torch.bool)
        seen[: len(table.components)] = torch.tensor([pair in used for pair in table.components])
        module.prepare(
            latents[0][self.train].to(model._device()),
            pairs.target[learn].to(model._device()),
            seen=seen,
            reference_dose=reference_doses(table, seen_codes, len(seen)),
        )
        batch_size = self.config.generator_batch_size
        n_batches = -(-len(learn) // batch_size)
        epochs = max(1, round((n_steps or STEPS_TWO) / n_batches))
        data = ScreenDataModule(
            pairs, train_idx=learn, val_idx=check, batch_size=batch_size, seed=seed + 1
        )
        plan = replace(self.config.generator, n_steps=epochs * n_batches)
        self._fit(
            Stage("generator", module, data, plan, epochs, keep_best=False,
                  gradient_clip=self.config.gradient_clip[1])
        )

    def _fit(self, stage: Stage) -> None:
        fit_stage(
            self.model,
            stage,
            trainer_kwargs=self.trainer_kwargs,
            checkpoint_dir=self.folder,
            every_n_epochs=self.config.checkpoint_every_n_epochs,
        )
        self.model.module.eval()

    def _mean_proportions(self) -> torch.Tensor:
        """Return the mean over training cells of each gene's share of the library."""
        total = np.zeros(self.reader.counts.shape[1])
        for rows in np.array_split(self.train, max(1, len(self.train) // 4096)):
            counts = read_rows(self.reader.counts, rows)
            library = (
                np.asarray(counts.sum(axis=1)).ravel()
                if self.reader.library is None
                else self.reader.library[rows]
            )
            total += np.asarray((counts / np.maximum(library, 1)[:, None]).sum(axis=0)).ravel()
        return torch.from_numpy(total / len(self.train)).float()
