"""Callbacks: keep the best weights, and a checkpoint from which a killed run goes on."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from pathlib import Path

    import lightning.pytorch as pl
    from torch import nn

__all__ = ["BestWeights", "Checkpoint"]


class BestWeights(Callback):
    """Keep the weights with the lowest monitored value in memory; restore them at the end.

    Parameters
    ----------
    monitor
        Name of a logged metric; smaller is better.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best = float("inf")
        self.best_epoch: int | None = None
        self.weights: dict[str, torch.Tensor] | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, and copy the weights when they are better."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.sanity_checking or not float(value) < self.best:
            return
        self.best, self.best_epoch = float(value), trainer.current_epoch
        state = cast("nn.Module", pl_module.module).state_dict()
        self.weights = {k: v.detach().clone() for k, v in state.items()}

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore."""
        del trainer
        if self.weights is not None:
            cast("nn.Module", pl_module.module).load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        return {"best": self.best, "best_epoch": self.best_epoch, "weights": self.weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.best, self.best_epoch = state_dict["best"], state_dict["best_epoch"]
        self.weights = state_dict["weights"]


class Checkpoint(Callback):
    """Write the state of the run after every `every_n_epochs`, replacing the file at once.

    The state of the random generators and the history go with it: a run that was killed and
    resumed gives what an uninterrupted one gives.

    Parameters
    ----------
    path
        File to write.
    every_n_epochs
        How often.
    """

    def __init__(self, path: Path, *, every_n_epochs: int = 1) -> None:
        self.path = path
        self.every_n_epochs = every_n_epochs
        self.history: dict[str, pd.DataFrame] = {}
        self._trainer: pl.Trainer | None = None
        self._random: dict[str, Any] | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the random numbers of the run that is resumed."""
        del pl_module
        self._trainer = trainer
        if self._random is not None:
            torch.set_rng_state(self._random["torch"].cpu())
            np.random.set_state(self._random["numpy"])  # noqa: NPY002 - restored by the caller

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write."""
        del pl_module
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        unfinished = self.path.with_suffix(".part")
        trainer.save_checkpoint(unfinished)
        if trainer.is_global_zero:
            unfinished.replace(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return history and random state."""
        return {
            "history": self.merged_history(),
            "random": {
                "torch": torch.get_rng_state(),
                "numpy": np.random.get_state(),  # noqa: NPY002 - saved, not drawn from
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.history = state_dict["history"]
        self._random = state_dict["random"]

    def merged_history(self) -> dict[str, pd.DataFrame]:
        """Return what was logged before the resumed epoch and since."""
        merged = deepcopy(self.history)
        logged = getattr(self._trainer.logger, "history", {}) if self._trainer else {}
        for name, frame in logged.items():
            before = merged.get(name, frame.iloc[:0])
            merged[name] = _append(before[~before.index.isin(frame.index)], frame)
        return merged


def _append(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    return after.copy() if before.empty else pd.concat([before, after])
