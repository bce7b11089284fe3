"""Batches for training: of cells from a screen, or of cached tensors, sharded over processes."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from scvi_perturb.data.shards import block_order

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scvi_perturb._core import Batch


class BatchSource(Protocol):
    """Anything that returns a batch for an array of indices."""

    def __len__(self) -> int:
        """Return the number of items."""
        ...

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Return the items at `indices`, in this order."""
        ...


@runtime_checkable
class Stream(Protocol):
    """A source that makes many batches at a time faster than each on its own."""

    def batches(self, parts: Sequence[np.ndarray], batch_size: int) -> Iterator[Batch]:
        """Yield the items of each part in batches, which are `completed` on their device."""
        ...

    def completed(self, batch: Batch) -> Batch:
        """Return a batch as modules take it."""
        ...


class BatchSampler(Sampler[np.ndarray]):
    """Batches of indices; every process of a distributed run gets its own share.

    The order depends on the seed and the epoch alone, so that an interrupted run can go on
    where it stopped. Shares have equal size (a few indices are repeated), as distributed
    training needs the same number of steps everywhere.

    `indices`: Indices to draw from. `batch_size`: Size of a batch in each process; the last may be
    smaller. `seed`: Seed of the order; None keeps the order of `indices`. `buffer`: Indices in
    memory at a time, see `block_order`; None orders all of them at once. `group`: Group of each of
    `indices`; each group gets an equal share of the batches, its indices repeated or left out, all
    about as often as each other. None takes each index once. `rank`, `world_size`: This process and
    the number of processes.
    """

    def __init__(
        self,
        indices: np.ndarray,
        batch_size: int,
        *,
        seed: int | None,
        buffer: int | None = None,
        group: np.ndarray | None = None,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices = np.asarray(indices, dtype=np.int64)
        self.batch_size = batch_size
        #: Parts are whole batches.
        self.buffer = None if buffer is None else -(-buffer // batch_size) * batch_size
        self.group = group
        self.seed = seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch (called by Lightning before each)."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Return the number of batches of this process."""
        return ceil(ceil(len(self.indices) / self.world_size) / self.batch_size)

    def parts(self) -> list[np.ndarray]:
        """Return the indices of this epoch and process, in order, cut where the buffer ends."""
        order = self.indices
        size = len(order) if self.buffer is None else self.buffer
        if self.seed is not None:
            random = np.random.default_rng((self.seed, self.epoch))
            if self.group is not None:
                order = _balanced(order, self.group, random)
            order = block_order(order, size, random)
        if self.world_size > 1:
            share = ceil(len(order) / self.world_size)
            order = np.resize(order, (self.world_size, share))[self.rank]
        return [order[start : start + size] for start in range(0, len(order), max(size, 1))]

    def __iter__(self) -> Iterator[np.ndarray]:
        """Yield arrays of indices."""
        for part in self.parts():
            for start in range(0, len(part), self.batch_size):
                yield part[start : start + self.batch_size]


def _balanced(indices: np.ndarray, group: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return as many indices, of each group as many, each about as often as others of its group."""
    order = random.permutation(len(indices))
    order = order[np.argsort(group[order], kind="stable")]
    members = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    shares = np.array_split(order, len(members))
    mixed = random.permutation(len(members))
    chosen = [np.resize(members[i], len(n)) for i, n in zip(mixed, shares, strict=True)]
    return indices[np.concatenate(chosen)]


class _StreamLoader(DataLoader):
    """A loader of batches that a stream makes in the order of the sampler."""

    def __iter__(self) -> Any:  # noqa: ANN401 - torch's own type, which is private
        """Yield the batches of an epoch."""
        source, sampler = cast("Stream", self.dataset), cast("BatchSampler", self.sampler)
        # Only now, not when the iterator is made: Lightning tells the epoch in between.
        yield from source.batches(sampler.parts(), sampler.batch_size)


class ScreenDataModule(pl.LightningDataModule):
    """Training and validation batches from one source.

    `source`: Where batches come from, e.g. a :class:`~scvi_perturb.data.reader.ScreenReader`.
    `train_idx`, `val_idx`, `test_idx`: Indices of each part; validation may be empty. `batch_size`:
    Cells a batch, in each process. `seed`: Seed of the order of training batches. `buffer`,
    `group`: Of the training batches, see `BatchSampler`; `group` has one entry an index of the
    source.
    """

    def __init__(
        self,
        source: BatchSource,
        *,
        train_idx: np.ndarray,
        val_idx: np.ndarray,
        test_idx: np.ndarray | None = None,
        batch_size: int = 256,
        seed: int | None = 0,
        buffer: int | None = None,
        group: np.ndarray | None = None,
    ) -> None:
        super().__init__()
        self.source = source
        self.train_idx, self.val_idx = train_idx, val_idx
        self.test_idx = np.zeros(0, dtype=np.int64) if test_idx is None else test_idx
        self.batch_size = batch_size
        self.buffer, self.group = buffer, group
        self.seed = seed if seed is not None else int(np.random.default_rng().integers(2**31))
        self._moved: BatchSource | None = None

    @property
    def n_train(self) -> int:
        """Number of training items."""
        return len(self.train_idx)

    @property
    def n_val(self) -> int:
        """Number of validation items."""
        return len(self.val_idx)

    def train_dataloader(self) -> DataLoader:
        """Return shuffled training batches."""
        return self._loader(self.train_idx, seed=self.seed)

    def val_dataloader(self) -> DataLoader | list:
        """Return validation batches in fixed order, or nothing."""
        return self._loader(self.val_idx, seed=None) if self.n_val else []

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move the tensors of a batch; Lightning looks for tensors in everything."""
        del dataloader_idx
        return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Complete a batch on its device."""
        del dataloader_idx
        return self.source.completed(batch) if isinstance(self.source, Stream) else batch

    def _resident(self) -> BatchSource:
        """Return the source on the device of the training, where it can be and fits there."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        move = getattr(self.source, "on", None)
        if move is None or device.type != "cuda":
            return self.source
        if self._moved is None:
            self._moved = move(device)
        return self._moved

    def _loader(self, indices: np.ndarray, *, seed: int | None) -> DataLoader:
        group = None if self.group is None else self.group[indices]
        sampler = BatchSampler(indices, self.batch_size, seed=seed, buffer=self.buffer, group=group)
        if self.trainer:
            sampler.rank, sampler.world_size = self.trainer.global_rank, self.trainer.world_size
        # A generator of its own: each pass draws a seed for worker processes, and would otherwise
        # draw it from the numbers that noise and dropout are made of.
        random = torch.Generator().manual_seed(self.seed)
        source = self._resident()
        kind = _StreamLoader if isinstance(source, Stream) else DataLoader
        return kind(cast("Dataset", source), sampler=sampler, batch_size=None, generator=random)
