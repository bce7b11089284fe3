"""Train both stages; stop the second by the error on held-out conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

from scvi_perturb._core import Key, generator
from scvi_perturb._files import write_text
from scvi_perturb._state import read_sealed, sealed
from scvi_perturb.data.datamodule import ScreenDataModule
from scvi_perturb.generative.samplers import SamplerConfig
from scvi_perturb.model.base.additive import fit_additive
from scvi_perturb.model.base.latents import LatentPairs, encode_in_shares, make_pairs
from scvi_perturb.model.base.reference import reference_doses, to_tensors
from scvi_perturb.model.base.training import (
    CellSplit,
    mean_proportions,
    n_batches,
    n_processes,
    representation_stage,
)
from scvi_perturb.module.base import ConditionBatch
from scvi_perturb.train.runner import Stage, fit_stage

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import lightning.pytorch as pl

    from scvi_perturb.data.condition_table import ConditionTable
    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.model.latent.model import LatentModel
    from scvi_perturb.module.autoencoder import CountAutoencoder
    from scvi_perturb.module.generator import LatentGenerator
    from scvi_perturb.train.plan import TrainConfig

#: Groups with fewer cells say too little about a distribution.
MIN_CELLS, MAX_CELLS = 20, 300


@dataclass(frozen=True, slots=True)
class HeldOutGroups:
    """Groups of one condition in one context, held out.

    `groups`: Cells of each group. `kind`: What they test: a condition in a `"context"` where it was
    not seen, or an unseen `"combination"` of seen components.
    """

    groups: tuple[np.ndarray, ...]
    kind: str

    @property
    def cells(self) -> np.ndarray:
        """All cells held out, sorted."""
        return np.sort(np.concatenate(self.groups))


def choose_held_out(
    codes: dict[str, np.ndarray], train: np.ndarray, table: ConditionTable, *, seed: int | None
) -> HeldOutGroups | None:
    """Choose what to hold out among the training cells.

    A tenth of the groups, at least one and at most five, of one kind: combinations of which
    every component is seen elsewhere, where there are several, else a condition in a context
    where others have it; of either there must be three. None when there is neither.
    """
    condition, context = codes[Key.CONDITION][train], codes[Key.CONTEXT][train]
    pairs, inverse, size = np.unique(
        np.stack([condition, context], axis=1), axis=0, return_inverse=True, return_counts=True
    )
    big = (size >= MIN_CELLS) & (pairs[:, 0] != 0)
    n_components = np.array([len(table.conditions[c].components) for c in pairs[:, 0]])
    singles = {table.conditions[c].components[0].name for c in pairs[n_components == 1, 0]}
    combination = np.array(
        [
            n > 1 and all(p.name in singles for p in table.conditions[c].components)
            for n, c in zip(n_components, pairs[:, 0], strict=True)
        ]
    )
    random = np.random.default_rng(seed)
    codes_of_combinations = np.unique(pairs[big & combination, 0])
    if len(codes_of_combinations) > 2:
        chosen = random.permutation(codes_of_combinations)[: _share(len(codes_of_combinations))]
        rows = [np.flatnonzero(pairs[:, 0] == code) for code in chosen]
        return _held(rows, inverse, train, "combination")
    n_contexts = pd.Series(pairs[:, 1]).groupby(pairs[:, 0]).transform("size").to_numpy()
    elsewhere = np.flatnonzero(big & (n_contexts > 2))
    if len(elsewhere) == 0:
        return None
    chosen = random.permutation(elsewhere)[: _share(len(elsewhere))]
    return _held([np.array([row]) for row in chosen], inverse, train, "context")


def latent_energy(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the energy distance between two samples of latents, `(n, d)` and `(m, d)`.

    Unbiased, with unsquared Euclidean norms (Szekely and Rizzo 2013).
    """
    n, m = len(a), len(b)
    between = torch.cdist(a, b).mean()
    within = torch.cdist(a, a).sum() / (n * (n - 1)) + torch.cdist(b, b).sum() / (m * (m - 1))
    return float(2 * between - within)


class HeldOutEnergy(Callback):
    """Look at the energy distance of held-out groups every so many steps; stop when it rises.

    `held`: What is held out. `latent`: Latents of all cells, `(n_cells, n_latent)`. `pairs`:
    References of all cells. `least`: Steps that are made in any case. `every`, `patience`: Steps
    between looks; looks without improvement before training stops. `seed`: Seed of the draws; the
    same noise at every look.
    """

    def __init__(
        self,
        held: HeldOutGroups,
        latent: torch.Tensor,
        pairs: LatentPairs,
        *,
        least: int,
        every: int,
        patience: int,
        seed: int | None,
    ) -> None:
        random = np.random.default_rng(seed)
        self.groups = [random.permutation(cells)[:MAX_CELLS] for cells in held.groups]
        self.latent, self.pairs = latent, pairs
        self.least, self.every, self.patience = least, every, patience
        self.seed = seed or 0
        self.errors: dict[int, float] = {}
        #: Whether this is the process that writes files.
        self.writes = True

    @property
    def best_step(self) -> int:
        """Number of steps with the least error, not fewer than the least allowed."""
        return best_step(self.errors, self.least)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Look, and stop when the last looks were no better than the best."""
        step, self.writes = trainer.global_step, trainer.is_global_zero
        if step % self.every or step in self.errors:
            return
        pl_module.eval()
        self.errors[step] = float(np.mean([self._error(pl_module, c) for c in self.groups]))
        pl_module.train()
        if step >= self.least and step - self.best_step >= self.patience * self.every:
            trainer.should_stop = True

    def _error(self, pl_module: pl.LightningModule, cells: np.ndarray) -> float:
        module, device = cast("LatentGenerator", pl_module.module), pl_module.device
        batch = {k: v.to(device) for k, v in self.pairs[cells].items()}
        given = ConditionBatch(
            module.table, batch[Key.CONDITION], batch["reference_mean"], batch[Key.CONTEXT]
        )
        drawn = module.sample_latent(
            given, sampler=SamplerConfig(n_evaluations=10), generator=generator(self.seed, device)
        )
        scale = module.latent_scale
        real = self.latent[torch.from_numpy(cells)].to(device)
        if not module.from_cell:  # what is drawn has the noise of the posterior
            noise = torch.randn(
                real.shape, generator=generator(self.seed + 1, device), device=device
            )
            real = real + (0.5 * batch["target_log_variance"]).exp() * noise
        return latent_energy(drawn / scale, real / scale)


def error_history(errors: dict[int, float]) -> pd.DataFrame:
    """Return the error at each look as a history of the model."""
    return pd.DataFrame({"generator_held_out_energy": errors}).rename_axis("step")


def best_step(errors: dict[int, float], least: int) -> int:
    """Return the step of the least error among those from `least` on."""
    allowed = [step for step in errors if step >= least]
    return min(allowed, key=errors.__getitem__) if allowed else least


def _share(n: int) -> int:
    return int(np.clip(round(n / 10), 1, 5))


def _held(
    rows: list[np.ndarray], inverse: np.ndarray, train: np.ndarray, kind: str
) -> HeldOutGroups:
    return HeldOutGroups(tuple(train[np.isin(inverse, group)] for group in rows), kind)


@dataclass(slots=True)
class TwoStageFit:
    """What the stages of one training share.

    `model`, `reader`, `parts`, `config`: The model, its cells, which of them to use, and how.
    `trainer_kwargs`: For the Trainer. `folder`: Where the state of the run is written, or None.
    """

    model: LatentModel
    reader: ScreenReader
    parts: CellSplit
    config: TrainConfig
    trainer_kwargs: dict[str, Any]
    folder: Path | None

    def representation(self, max_epochs: int | None, *, batch_size: int, seed: int) -> None:
        """Train stage one on counts."""
        module = cast("CountAutoencoder", self.model.module.representation)
        if not self.model.is_trained_:
            module.initialise(mean_proportions(self.reader, self.parts.train))
        batches = torch.from_numpy(np.unique(self.reader.codes[Key.BATCH][self.parts.train]))
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
        latents = encode_in_shares(
            model.module.representation,
            self.reader.__getitem__,
            len(self.reader),
            model._device(),
            n_processes=n_processes(self.trainer_kwargs),
        )
        pairs = make_pairs(
            latents,
            codes,
            train=self.parts.train,
            validation=self.parts.validation,
            config=model.module.generator.config,
            seed=seed,
            n_processes=n_processes(self.trainer_kwargs),
        )
        n_steps = n_steps or self._finished_search() or self._search_steps(pairs, latents[0], seed)
        model.n_steps_ = n_steps
        model._record_trained_pairs(codes, self.parts.train)
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
        callback = HeldOutEnergy(
            held,
            latent,
            pairs,
            least=min(self.config.min_generator_steps, limit),
            every=self.config.check_every_n_steps,
            patience=self.config.check_patience,
            seed=seed,
        )
        parts = CellSplit(train, self.parts.validation[:0], held.cells)
        self._fit_generator(pairs, parts, limit, name="search", seed=seed, callback=callback)
        module.load_state_dict(start)
        model.history_ = {
            k: v for k, v in model.history_.items() if not k.startswith("search_")
        } | {"generator_held_out_energy": error_history(callback.errors)}
        if self.folder is not None and callback.writes:
            errors = sealed({"errors": callback.errors})
            write_text(self.folder / "n_steps.json", errors, make_folder=True)
        return callback.best_step

    def _finished_search(self) -> int | None:
        """Return the number of steps that an interrupted run had found."""
        path = None if self.folder is None else self.folder / "n_steps.json"
        if path is None or not path.exists():
            return None
        found = read_sealed(path.read_text(encoding="utf-8", errors="replace"), where=path)
        errors = {int(step): float(error) for step, error in found["errors"].items()}
        history = {"generator_held_out_energy": error_history(errors)}
        self.model.history_ = {**(self.model.history_ or {}), **history}
        least = min(self.config.min_generator_steps, self.config.max_generator_steps)
        return best_step(errors, least)

    def _fit_generator(
        self,
        pairs: LatentPairs,
        parts: CellSplit,
        n_steps: int,
        *,
        name: str,
        seed: int,
        callback: HeldOutEnergy | None = None,
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
            compile=self.config.compile,
        )
        extra: dict[str, Any] = {"max_steps": n_steps}
        if callback is not None:
            extra["callbacks"] = [callback]
        self._fit(stage, self.folder if name == "generator" else None, extra)

    def _prepare(self, pairs: LatentPairs, latent: torch.Tensor, train: np.ndarray) -> None:
        """Tell the generator the scales and the components of the training cells."""
        model, codes = self.model, self.reader.codes[Key.CONDITION]
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
        contexts = torch.from_numpy(np.unique(self.reader.codes[Key.CONTEXT][learn])).to(device)
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
        return cells[self.reader.codes[Key.CONDITION][cells] != 0]

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
