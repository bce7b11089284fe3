"""What the training of a representation is made of: batches, epochs, the mean profile."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvi_perturb.data import ScreenDataModule, read_rows
from scvi_perturb.train import Stage

if TYPE_CHECKING:
    from scvi.module.base import BaseModuleClass

    from scvi_perturb.data import ScreenReader
    from scvi_perturb.model._trained_on import Parts
    from scvi_perturb.train import TrainConfig

__all__ = ["mean_proportions", "n_batches", "representation_stage"]

FEWEST_EPOCHS, MOST_EPOCHS = 10, 100


def n_batches(n_cells: int, batch_size: int, trainer_kwargs: dict[str, Any]) -> int:
    """Return the number of batches of an epoch in each process."""
    devices = trainer_kwargs.get("devices")
    share = -(-n_cells // (devices if isinstance(devices, int) and devices > 1 else 1))
    return max(1, -(-share // batch_size))


def mean_proportions(reader: ScreenReader, train: np.ndarray) -> torch.Tensor:
    """Return the mean over training cells of each gene's share of the library, `(n_genes,)`."""
    library = reader.library
    total = np.zeros(reader.counts.shape[1])
    for rows in np.array_split(train, max(1, len(train) // 4096)):
        counts = read_rows(reader.counts, rows)
        size = np.asarray(counts.sum(axis=1)).ravel() if library is None else library[rows]
        total += np.asarray(counts.T @ (1.0 / np.maximum(size, 1.0))).ravel()
    return torch.from_numpy(total / len(train)).float()


def representation_stage(
    module: BaseModuleClass,
    reader: ScreenReader,
    parts: Parts,
    config: TrainConfig,
    *,
    max_epochs: int | None,
    batches: tuple[int, int],
    seed: int,
) -> Stage:
    """Return the stage that trains a representation on cells.

    `batches` are the cells of a batch, and the batches of an epoch in each process.
    """
    batch_size, n_in_epoch = batches
    wanted = round(config.representation_steps / n_in_epoch)
    epochs = max_epochs or int(np.clip(wanted, FEWEST_EPOCHS, MOST_EPOCHS))
    data = ScreenDataModule(
        reader,
        train_idx=parts.train,
        val_idx=parts.validation,
        batch_size=batch_size,
        seed=seed,
    )
    return Stage(
        "representation",
        module,
        data,
        replace(config.representation, n_steps=epochs * n_in_epoch),
        epochs,
        patience=config.patience if config.early_stopping else None,
        keep_best=config.keep_best,
        gradient_clip=config.gradient_clip[0],
    )
