"""One call of `train`: stage one on counts, stage two on cached latents."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY
from scvi_perturb.data import ScreenDataModule
from scvi_perturb.model._additive import fit_additive
from scvi_perturb.model._epochs import mean_proportions, n_batches, representation_stage
from scvi_perturb.model._held_out import (
    HeldOutError,
    best_step,
    choose_held_out,
    error_history,
)
from scvi_perturb.model._latents import LatentPairs, encode_cells, make_pairs
from scvi_perturb.model._trained_on import Parts
from scvi_perturb.model._vocabulary import reference_doses, to_tensors
from scvi_perturb.train import Stage, fit_stage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from scvi_perturb.data import ScreenReader
    from scvi_perturb.model._training import TwoStageTraining
    from scvi_perturb.module import CountAutoencoder
    from scvi_perturb.train import TrainConfig

__all__ = ["Fit"]


@dataclass(slots=True)
class Fit:
    """What the stages of one training share.

    Attributes
    ----------
    model, reader, parts, config
        The model, its cells, which of them to use, and how.
    trainer_kwargs
        For the Trainer.
    folder
        Where the state of the run is written, or None.
    """

    model: TwoStageTraining
    reader: ScreenReader
    parts: Parts
    config: TrainConfig
    trainer_kwargs: dict[str, Any]
    folder: Path | None

    def representation(self, max_epochs: int | None, *, batch_size: int, seed: int) -> None:
        """Train stage one on counts."""
        module = cast("CountAutoencoder", self.model.module.representation)
        if not self.model.is_trained_:
            module.initialise(mean_proportions(self.reader, self.parts.train))
        batches = torch.from_numpy(np.unique(self.reader.codes[BATCH_KEY][self.parts.train]))
        module.seen_batch.zero_().index_fill_(0, batches.to(module.device), value=True)
        n_in_epoch = n_batches(len(self.parts.train), batch_size, self.trainer_kwargs)
        stage = representation_stage(
            module,
            self.reader,
            self.parts,
            self.config,
            max_epochs=max_epochs,
            batches=(batch_size, n_in_epoch),
            seed=seed,
        )
        self._fit(stage, self.folder, {})

    def generator(self, n_steps: int | None, *, seed: int) -> None:
        """Train stage two on cached latents, for `n_steps` or as long as held-out error says."""
        model, codes = self.model, self.reader.codes
        model.module.eval()
        latents = encode_cells(
            model.module.representation, self.reader.__getitem__, len(self.reader), model._device()
        )
        pairs = make_pairs(
            latents,
            codes,
            train=self.parts.train,
            validation=self.parts.validation,
            config=model.module.generator.config,
            seed=seed,
        )
        n_steps = n_steps or self._finished_search() or self._search_steps(pairs, latents[0], seed)
        model.n_steps_ = n_steps
        model._remember_pairs(codes, self.parts.train)
        self._prepare(pairs, latents[0], self.parts.train)
        self._fit_generator(pairs, self.parts, n_steps, name="generator", seed=seed)

    def _search_steps(self, pairs: LatentPairs, latent: torch.Tensor, seed: int) -> int:
        """Return the number of steps with the least error on conditions held out for it."""
        model, codes = self.model, self.reader.codes
        held = choose_held_out(codes, self.parts.train, model._screen.table, seed=seed)
        limit = self.config.max_generator_steps
        if held is None:
            return min(limit, self.config.generator_steps)
        module = model.module.generator
        start = {k: v.clone() for k, v in module.state_dict().items()}
        train = np.setdiff1d(self.parts.train, held.cells)
        self._prepare(pairs, latent, train)
        callback = HeldOutError(
            held,
            latent,
            pairs,
            least=min(self.config.min_generator_steps, limit),
            every=self.config.check_every_n_steps,
            patience=self.config.check_patience,
            seed=seed,
        )
        parts = Parts(train, self.parts.validation, held.cells)
        self._fit_generator(pairs, parts, limit, name="search", seed=seed, callback=callback)
        module.load_state_dict(start)
        model.history_ = {
            k: v for k, v in model.history_.items() if not k.startswith("search_")
        } | {"generator_held_out_energy": error_history(callback.errors)}
        if self.folder is not None and callback.writes:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "n_steps.json").write_text(json.dumps(callback.errors))
        return callback.best_step

    def _finished_search(self) -> int | None:
        """Return the number of steps that an interrupted run had found."""
        path = None if self.folder is None else self.folder / "n_steps.json"
        if path is None or not path.exists():
            return None
        errors = {int(step): error for step, error in json.loads(path.read_text()).items()}
        history = {"generator_held_out_energy": error_history(errors)}
        self.model.history_ = {**(self.model.history_ or {}), **history}
        least = min(self.config.min_generator_steps, self.config.max_generator_steps)
        return best_step(errors, least)

    def _fit_generator(
        self,
        pairs: LatentPairs,
        parts: Parts,
        n_steps: int,
        *,
        name: str,
        seed: int,
        callback: HeldOutError | None = None,
    ) -> None:
        learn, check = self._learnt(parts.train), self._learnt(parts.validation)
        batch_size = self.config.generator_batch_size
        data = ScreenDataModule(
            pairs, train_idx=learn, val_idx=check, batch_size=batch_size, seed=seed + 1
        )
        epochs = -(-n_steps // n_batches(len(learn), batch_size, self.trainer_kwargs))
        stage = Stage(
            name,
            self.model.module.generator,
            data,
            self.config.generator,
            epochs,
            keep_best=False,
            gradient_clip=self.config.gradient_clip[1],
        )
        extra: dict[str, Any] = {"max_steps": n_steps}
        if callback is not None:
            extra["callbacks"] = [callback]
        self._fit(stage, self.folder if name == "generator" else None, extra)

    def _prepare(self, pairs: LatentPairs, latent: torch.Tensor, train: np.ndarray) -> None:
        """Tell the generator the scales and the components of the training cells."""
        model, codes = self.model, self.reader.codes[CONDITION_KEY]
        table, device = model._screen.table, model._device()
        present = np.unique(codes[train])
        used = {(p.name, p.kind) for c in present for p in table.conditions[c].components}
        seen = torch.zeros(max(len(model._vocabulary.names), 1), dtype=torch.bool)
        seen[: len(table.components)] = torch.tensor([pair in used for pair in table.components])
        module, learn = model.module.generator, self._learnt(train)
        doses = reference_doses(table, present, len(seen))
        target = pairs.target[learn]
        if module.config.displaced:
            conditions = to_tensors(table.arrays())
            features = model._vocabulary.feature_tensors()
            treated = learn[codes[learn] != 0]
            fit = fit_additive(pairs.target[treated], codes[treated], conditions, doses, features)
            module.prepare_additive(
                fit.vectors, doses, log_ec50=fit.log_ec50, log_slope=fit.log_slope
            )
            rows = module.table.rows(torch.from_numpy(codes[learn]).to(device))
            target = target - module.additive(rows.component, rows.dose, rows.mask).cpu()
        contexts = torch.from_numpy(np.unique(self.reader.codes[CONTEXT_KEY][learn])).to(device)
        module.seen_context.zero_().index_fill_(0, contexts, value=True)
        module.prepare(
            latent[train].to(device),
            target.to(device),
            seen=seen,
            reference_dose=doses,
            target_variance=pairs.target_log_variance[learn].exp().mean(0).to(device),
        )

    def _learnt(self, cells: np.ndarray) -> np.ndarray:
        """Return the cells whose targets are learnt: controls start and end at themselves."""
        if not self.model.module.generator.from_cell:
            return cells
        return cells[self.reader.codes[CONDITION_KEY][cells] != 0]

    def _fit(self, stage: Stage, folder: Path | None, extra: Mapping[str, Any]) -> None:
        given = self.trainer_kwargs.get("callbacks") or []
        callbacks = [*given, *extra.get("callbacks", [])]
        fit_stage(
            self.model,
            stage,
            trainer_kwargs={**self.trainer_kwargs, **extra, "callbacks": callbacks},
            checkpoint_dir=folder,
            every_n_epochs=self.config.checkpoint_every_n_epochs,
        )
        self.model.module.eval()
