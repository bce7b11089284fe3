"""What training leaves behind: cells seen, and epochs."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from functools import wraps
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import numpy as np
import torch

from scvi_perturb._core import Key
from scvi_perturb.data.datamodule import ScreenDataModule
from scvi_perturb.data.reader import CompressedCells, read_rows
from scvi_perturb.train.runner import Stage

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi.model.base import BaseModelClass
    from scvi.module.base import BaseModuleClass

    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.train.plan import TrainConfig

Train = TypeVar("Train", bound="Callable[..., None]")


def all_or_nothing(train: Train) -> Train:
    """Make `train` leave the model as it was when it fails or is interrupted."""

    @wraps(train)
    def run(self: BaseModelClass, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        before = {**vars(self), "module": deepcopy(self.module)}
        try:
            train(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast("Train", run)


FEWEST_EPOCHS, MOST_EPOCHS = 10, 100


def n_processes(trainer_kwargs: dict[str, Any]) -> int:
    """Return how many processes train, as far as arguments of the Trainer say."""
    counts = [trainer_kwargs.get(name) for name in ("devices", "num_nodes")]
    return math.prod(n for n in counts if isinstance(n, int) and n > 1)


def n_batches(n_cells: int, batch_size: int, trainer_kwargs: dict[str, Any]) -> int:
    """Return the number of batches of an epoch in each process."""
    share = -(-n_cells // n_processes(trainer_kwargs))
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
    parts: CellSplit,
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
    if reader.on_disk:
        reader.counts.use(config.reader)
    source = CompressedCells(reader) if getattr(module, "reads_sparse", False) else reader
    data = ScreenDataModule(
        source,
        train_idx=parts.train,
        val_idx=parts.validation,
        batch_size=batch_size,
        seed=seed,
        buffer=config.buffer if reader.on_disk else None,
        group=reader.codes[Key.CONDITION] if config.balanced else None,
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
        compile=config.compile,
    )


class CellSplit(NamedTuple):
    """Indices of the cells that train, validate, and are held out."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
