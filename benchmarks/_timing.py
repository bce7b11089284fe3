"""Measure cells per second of a training run."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.callbacks import Callback

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import lightning.pytorch as pl

__all__ = ["EpochTimer"]


class EpochTimer(Callback):
    """Cells and seconds of each training epoch, validation left out.

    One callback may be given to a model that trains in several stages: each stage is a run. `clock`
    gives the seconds; those of the CPU where a machine is shared.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.runs: list[list[tuple[int, float]]] = []
        self._cells = 0
        self._start = self._last = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer, pl_module
        self.runs.append([])

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer, pl_module
        self._cells = 0
        self._start = self._last = self.clock()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: object,
        batch: Mapping[str, torch.Tensor],
        batch_idx: int,
    ) -> None:
        del trainer, pl_module, outputs, batch_idx
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._cells += n_cells(batch)
        self._last = self.clock()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        del trainer, pl_module
        self.runs[-1].append((self._cells, self._last - self._start))

    def cells_per_second(self, run: int = 0, *, warm_up: int = 1) -> float:
        """Return the speed of a run over the epochs after the first `warm_up`."""
        epochs = self.runs[run][warm_up:]
        if not epochs:
            msg = f"Run {run} had {len(self.runs[run])} epochs; measuring needs > {warm_up}."
            raise ValueError(msg)
        return sum(cells for cells, _ in epochs) / sum(seconds for _, seconds in epochs)


def n_cells(batch: Mapping[str, torch.Tensor]) -> int:
    """Return the number of cells of a batch: `X`, or else the first tensor with rows."""
    if "X" in batch:
        return len(batch["X"])
    return next(len(tensor) for tensor in batch.values() if tensor.ndim)
