"""When to stop stage two: by the error on conditions that were held out for it.

More steps always fit the trained conditions better, and from some point on the others worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

from scvi_perturb._constants import CONDITION_KEY, CONTEXT_KEY
from scvi_perturb._random import generator
from scvi_perturb.generative import SamplerConfig

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from scvi_perturb.data import ConditionTable
    from scvi_perturb.model._latents import LatentPairs
    from scvi_perturb.module import LatentGenerator

__all__ = [
    "HeldOut",
    "HeldOutError",
    "best_step",
    "choose_held_out",
    "error_history",
    "latent_energy",
]

#: Groups with fewer cells say too little about a distribution.
MIN_CELLS, MAX_CELLS = 20, 300


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Groups of one condition in one context, held out.

    Attributes
    ----------
    groups
        Cells of each group.
    kind
        What they test: a condition in a `"context"` where it was not seen, or an unseen
        `"combination"` of seen components.
    """

    groups: tuple[np.ndarray, ...]
    kind: str

    @property
    def cells(self) -> np.ndarray:
        """All cells held out, sorted."""
        return np.sort(np.concatenate(self.groups))


def choose_held_out(
    codes: dict[str, np.ndarray], train: np.ndarray, table: ConditionTable, *, seed: int | None
) -> HeldOut | None:
    """Choose what to hold out among the training cells.

    A tenth of the groups, at least one and at most five, of one kind: combinations of which
    every component is seen elsewhere, where there are several, else a condition in a context
    where others have it; of either there must be three. None when there is neither.
    """
    condition, context = codes[CONDITION_KEY][train], codes[CONTEXT_KEY][train]
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


class HeldOutError(Callback):
    """Look at the energy distance of held-out groups every so many steps; stop when it rises.

    Parameters
    ----------
    held
        What is held out.
    latent
        Latents of all cells, `(n_cells, n_latent)`.
    pairs
        References of all cells.
    least
        Steps that are made in any case.
    every, patience
        Steps between looks; looks without improvement before training stops.
    seed
        Seed of the draws; the same noise at every look.
    """

    def __init__(
        self,
        held: HeldOut,
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
        drawn = module.sample_latent(
            module.table,
            batch[CONDITION_KEY],
            batch["reference_mean"],
            batch[CONTEXT_KEY],
            sampler=SamplerConfig(n_evaluations=10),
            generator=generator(self.seed, device),
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


def _held(rows: list[np.ndarray], inverse: np.ndarray, train: np.ndarray, kind: str) -> HeldOut:
    return HeldOut(tuple(train[np.isin(inverse, group)] for group in rows), kind)
