"""Callbacks: keep the best weights, and a checkpoint from which a killed run goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins import CheckpointIO

from scvi_perturb._checks import checked
from scvi_perturb._files import write_bytes
from scvi_perturb._state import from_bytes, to_bytes

if TYPE_CHECKING:
    from os import PathLike

    import lightning.pytorch as pl
    from torch import nn


@checked
class BestWeights(Callback):
    """Keep the weights with the lowest monitored value in memory; restore them at the end.

    With `patience` it also stops early. Lightning's own callback decides after the last hook in
    which a checkpoint can be written, so that a resumed run would forget one epoch; and
    scvi-tools switches it off in distributed training.

    Parameters
    ----------
    monitor
        Name of a logged metric; smaller is better.
    patience
        Validation epochs without improvement after which training stops; None never stops.
    restore
        Whether the weights are kept and restored; otherwise it only stops.
    """

    def __init__(self, monitor: str, *, patience: int | None = None, restore: bool = True) -> None:
        self.monitor, self.patience, self.restore = monitor, patience, restore
        self.best = float("inf")
        self.best_epoch: int | None = None
        self.weights: dict[str, torch.Tensor] | None = None
        self.n_worse = 0

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Compare, and copy the weights when they are better."""
        value = trainer.callback_metrics.get(self.monitor)
        if value is None or trainer.sanity_checking:
            return
        if float(value) < self.best:
            self.best, self.best_epoch, self.n_worse = float(value), trainer.current_epoch, 0
            if self.restore:
                state = cast("nn.Module", pl_module.module).state_dict()
                self.weights = {k: v.detach().clone() for k, v in state.items()}
            return
        self.n_worse += 1
        if self.patience is not None and self.n_worse >= self.patience:
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Restore the best weights."""
        del trainer
        if self.weights is not None:
            cast("nn.Module", pl_module.module).load_state_dict(self.weights)

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must hold."""
        names = ("best", "best_epoch", "weights", "n_worse")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        for name, value in state_dict.items():
            setattr(self, name, value)


class StopAfter(Callback):
    """Stop after `n_steps` steps."""

    def __init__(self, n_steps: int) -> None:
        self.n_steps = n_steps

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: object
    ) -> None:
        """Ask the trainer to stop once the steps are done."""
        del pl_module
        if trainer.global_step >= self.n_steps:
            trainer.should_stop = True


@checked
class Checkpoint(Callback):
    """Write the state of the run after every `every_n_epochs`, replacing the file at once.

    The state of the random generators and the history go with it: a run that was killed and
    resumed gives what an uninterrupted one gives. The file holds plain types and tensors only,
    so that reading it runs no code.

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
        # They are those of the first process; the others go on with their own.
        if self._random is not None and trainer.is_global_zero:
            _set_random_state(self._random)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the state of the run, where it is due."""
        del pl_module
        if (trainer.current_epoch + 1) % self.every_n_epochs:
            return
        trainer.save_checkpoint(self.path)

    def state_dict(self) -> dict[str, Any]:
        """Return history and random state."""
        frames = self.merged_history()
        if self._trainer is not None:
            _add_epoch(frames, self._trainer)
        history = {
            name: {"index": [int(i) for i in frame.index], "values": frame[name].tolist()}
            for name, frame in frames.items()
        }
        return {"history": history, "random": _random_state()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.history = {
            name: pd.DataFrame({name: kept["values"]}, index=pd.Index(kept["index"], name="epoch"))
            for name, kept in state_dict["history"].items()
        }
        self._random = state_dict["random"]

    def merged_history(self) -> dict[str, pd.DataFrame]:
        """Return what was logged before the resumed epoch and since, one column each."""
        logged = getattr(self._trainer.logger, "history", {}) if self._trainer else {}
        merged = dict(self.history)
        for name, frame in logged.items():
            since = frame.astype(float)
            before = merged.get(name)
            if before is not None:
                since = pd.concat([before[~before.index.isin(since.index)], since])
            merged[name] = since
        return merged


class StateFiles(CheckpointIO):
    """Write Lightning's checkpoints as arrays and JSON with a digest, in place of a pickle."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | PathLike[str],
        storage_options: object = None,
    ) -> None:
        """Write a checkpoint."""
        del storage_options
        write_bytes(path, to_bytes(checkpoint))

    def load_checkpoint(
        self, path: str | PathLike[str], map_location: object = None, weights_only: object = None
    ) -> dict[str, Any]:
        """Read a checkpoint; raise `SchemaError` where it is not what was written."""
        del map_location, weights_only  # it is on the CPU, and holds no code
        state: dict[str, Any] = from_bytes(Path(path).read_bytes(), where=path)
        return state

    def remove_checkpoint(self, path: str | PathLike[str]) -> None:
        """Remove a checkpoint."""
        Path(path).unlink(missing_ok=True)


def _add_epoch(frames: dict[str, pd.DataFrame], trainer: pl.Trainer) -> None:
    """Add the training metrics of this epoch, which are logged after its last hook."""
    epoch = trainer.current_epoch
    for name, value in trainer.logged_metrics.items():
        frame = frames.get(name, pd.DataFrame({name: []}, index=pd.Index([], name="epoch")))
        if epoch not in frame.index:
            row = pd.DataFrame({name: [float(value)]}, index=pd.Index([epoch], name="epoch"))
            frames[name] = row if frame.empty else pd.concat([frame, row])


def _random_state() -> dict[str, Any]:
    """Return the state of the global generators, which dropout and noise read."""
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 - saved, not drawn from
    words = torch.from_numpy(numpy["state"]["key"].astype(np.int64))
    return {
        "torch": torch.get_rng_state(),
        "devices": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": {**numpy, "state": {"key": words, "pos": int(numpy["state"]["pos"])}},
    }


def _set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"].cpu())
    if len(state["devices"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([device.cpu() for device in state["devices"]])
    position = state["numpy"]["state"]
    words = position["key"].cpu().numpy().astype(np.uint32)
    numpy = {**state["numpy"], "state": {"key": words, "pos": position["pos"]}}
    np.random.set_state(numpy)  # noqa: NPY002 - restored by the caller
