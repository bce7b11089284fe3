"""Latents of cells, and the pairs that stage two learns from."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import numpy as np
import torch
from sklearn.neighbors import NearestNeighbors
from torch import distributed

from scvi_perturb._core import (
    Key,
    generator,
    warn,
)
from scvi_perturb._files import scratch
from scvi_perturb.data.matching import group_controls, match_controls
from scvi_perturb.generative.coupling import couple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scvi_perturb._core import Batch
    from scvi_perturb.generative.coupling import CouplingMethod
    from scvi_perturb.model.base.reference import Reference
    from scvi_perturb.module.base import Representation
    from scvi_perturb.module.generator import GeneratorConfig

_T = TypeVar("_T")

CHUNK = 2048
#: Larger arrays of latents and pairs are on disk.
MOST_IN_MEMORY: Final = 1 << 30
#: Couplings that `match_controls` knows by name.
_METHODS: Final = {"exact": "ot", "random": "random"}
#: Log variance of what is known exactly.
EXACT_LOG_VARIANCE = -30.0


def chunks(n: int, size: int = CHUNK) -> Iterator[np.ndarray]:
    """Yield `0..n-1` in consecutive arrays of at most `size`."""
    for start in range(0, n, size):
        yield np.arange(start, min(start + size, n))


def chosen_rows(indices: Sequence[int] | None, n_cells: int, key_added: str | None) -> np.ndarray:
    """Return cell numbers from numbers, a mask, or None for all."""
    if indices is None:
        return np.arange(n_cells)
    if key_added is not None:
        msg = "key_added writes one value a cell of the data; leave `indices` out."
        raise ValueError(msg)
    chosen = np.asarray(indices)
    if chosen.dtype == bool:
        if len(chosen) != n_cells:
            msg = f"indices is a mask of {len(chosen)} cells; expected one of {n_cells}."
            raise ValueError(msg)
        return np.flatnonzero(chosen)
    wrong = chosen[(chosen < -n_cells) | (chosen >= n_cells)]
    if len(wrong):
        msg = f"indices holds {wrong[0]}, but there are {n_cells} cells, from 0 to {n_cells - 1}."
        raise ValueError(msg)
    return chosen.astype(np.int64)


@torch.inference_mode()
def encode_cells(
    representation: Representation,
    read: Callable[[np.ndarray], Batch],
    n_cells: int,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and log variance of the latents of `n_cells` cells, on the CPU.

    They are in memory, or in a temporary file where they are large, see `scratch`.
    """
    made: list[torch.Tensor] = []
    for rows in chunks(n_cells):
        tensors = {k: v.to(device) for k, v in read(rows).items()}
        found = representation.encode(tensors)
        made = made or [_table(n_cells, one.shape[1]) for one in found]
        for table, values in zip(made, found, strict=True):
            table[rows[0] : rows[-1] + 1] = values
    return made[0], made[1]


def _table(n_cells: int, n_latent: int) -> torch.Tensor:
    if 4 * n_cells * n_latent > MOST_IN_MEMORY:
        return torch.from_numpy(scratch((n_cells, n_latent)))
    return torch.empty(n_cells, n_latent)


def _gathered(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Return `table[index]`, as large as it may be."""
    made = _table(len(index), table.shape[1])
    for rows in chunks(len(index), 32 * CHUNK):
        part = slice(rows[0], rows[-1] + 1)
        made[part] = table[index[part]]
    return made


def encode_in_shares(
    representation: Representation,
    read: Callable[[np.ndarray], Batch],
    n_cells: int,
    device: torch.device,
    *,
    n_processes: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what `encode_cells` does; of processes that train together each encodes its share."""

    def encode(rank: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        own = np.array_split(np.arange(n_cells), n)[rank]
        return encode_cells(representation, lambda rows: read(own[rows]), len(own), device)

    parts = in_shares(encode, n_processes=n_processes)
    if len(parts) == 1:
        return parts[0]
    mean, log_variance = (torch.cat(part) for part in zip(*parts, strict=True))
    return mean, log_variance


def in_shares(work: Callable[[int, int], _T], *, n_processes: int) -> list[_T]:
    """Return what `work(rank, n)` makes of each share; processes that train together share them."""
    if n_processes < 2 or not (distributed.is_available() and distributed.is_initialized()):
        return [work(0, 1)]
    n = distributed.get_world_size()
    parts: list[Any] = [None] * n
    distributed.all_gather_object(parts, work(distributed.get_rank(), n))
    return parts


@dataclass(slots=True)
class LatentPairs:
    """What stage two learns from: for each cell a target, and the reference it starts from.

    `target`, `target_log_variance`: Displacement from the reference, or the latent itself,
    `(n_cells, n_latent)`. `reference`, `reference_log_variance`: Latent of the control cell, or of
    the mean of the control population. `condition`, `context`: Codes of each cell, `(n_cells,)`.
    """

    target: torch.Tensor
    target_log_variance: torch.Tensor
    reference: torch.Tensor
    reference_log_variance: torch.Tensor
    condition: torch.Tensor
    context: torch.Tensor

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.target)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Return the pairs at `indices` as a batch."""
        index = torch.from_numpy(np.asarray(indices, dtype=np.int64)).to(self.target.device)
        return {
            "target_mean": self.target[index],
            "target_log_variance": self.target_log_variance[index],
            "reference_mean": self.reference[index],
            "reference_log_variance": self.reference_log_variance[index],
            Key.CONDITION: self.condition[index],
            Key.CONTEXT: self.context[index],
        }

    def on(self, device: torch.device) -> LatentPairs:
        """Return the pairs on a device."""
        return LatentPairs(*(getattr(self, one.name).to(device) for one in fields(self)))


def make_pairs(
    latents: tuple[torch.Tensor, torch.Tensor],
    codes: dict[str, np.ndarray],
    *,
    train: np.ndarray,
    validation: np.ndarray,
    config: GeneratorConfig,
    seed: int | None,
    n_processes: int = 1,
) -> LatentPairs:
    """Match every cell to training controls of its context and batch.

    Matching is by optimal transport in the latent, within a context, batch and condition: a
    coupling which keeps the controls' distribution, and not an identified counterfactual.

    `latents`: Mean and log variance of all cells, see :func:`encode_cells`. `codes`: Condition,
    context and batch of all cells. `train`, `validation`: Cells of each part. Only training
    controls are references, and the cells of one part are matched and averaged among themselves:
    nothing of a held-out cell reaches a target. `config`: What the reference is. `seed`: Seed of
    the matching. `n_processes`: Processes that train together; each matches a share.
    """
    mean, log_variance = latents
    condition, context = codes[Key.CONDITION], codes[Key.CONTEXT]
    is_control = np.zeros(len(mean), dtype=bool)
    is_control[train] = condition[train] == 0
    groups = group_controls(context, codes[Key.BATCH], is_control)
    part = np.full(len(mean), 2)
    part[train], part[validation] = 0, 1
    apart = 3 * condition + part
    sure = mean.new_full((1, 1), EXACT_LOG_VARIANCE).expand_as(mean)  # no memory
    given = (torch.from_numpy(condition), torch.from_numpy(context))
    if config.reference != "cell":
        pools = [mean[groups.pool(g)].mean(0) for g in range(len(groups.start))]
        centre = torch.stack(pools)[torch.from_numpy(groups.group)]
        target = mean - centre if config.displaced else mean
        return LatentPairs(target, log_variance, centre, sure, *given)
    method: Any = _METHODS.get(config.matching) or partial(_sources, config.matching)
    given_to_match = {"latent": mean.numpy(), "condition": apart, "seed": seed}
    shares = in_shares(
        lambda *share: match_controls(groups, method=method, share=share, **given_to_match),
        n_processes=n_processes,
    )
    matched = torch.from_numpy(np.maximum.reduce(shares))
    start, start_log_variance = (_gathered(table, matched) for table in latents)
    move = torch.sub(mean, start, out=_table(*mean.shape))
    if config.n_neighbours > 1:
        where = np.stack([apart, context], axis=1)
        # Not of `start`: which controls are matched depends on all cells, held-out ones included.
        scale = mean[torch.from_numpy(train)].std(0).clamp_min(1e-3)
        mean_move = _smooth(move, start, scale, where, config.n_neighbours)
        torch.lerp(mean_move, move, config.residual, out=move)
        log_variance = sure
    return LatentPairs(move, log_variance, start, start_log_variance, *given)


def _sources(
    method: CouplingMethod, targets: np.ndarray, sources: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return the source of each target by an entropic coupling."""
    seeded = generator(int(random.integers(2**31)))
    points = (torch.from_numpy(sources), torch.from_numpy(targets))
    return couple(*points, method=method, generator=seeded)[0].numpy()


def _smooth(
    move: torch.Tensor,
    start: torch.Tensor,
    scale: torch.Tensor,
    where: np.ndarray,
    n_neighbours: int,
) -> torch.Tensor:
    """Average displacements over the pairs that start nearest, in the same condition, context.

    Distances are in units of `scale`, `(n_latent,)`.
    """
    smooth = _table(*move.shape)
    _, group = np.unique(where, axis=0, return_inverse=True)
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        moves = move[members]
        if len(members) > n_neighbours:
            points = (start[members] / scale).numpy()
            near = NearestNeighbors(n_neighbors=n_neighbours).fit(points)
            moves = moves[near.kneighbors(return_distance=False, X=points)]
            smooth[members] = moves.mean(dim=1)
        else:
            smooth[members] = moves.mean(dim=0)
    return smooth


@dataclass(frozen=True, slots=True)
class Populations:
    """Mean latents of control cells, by context and batch.

    `context`, `batch`: Codes of each population, `(n,)`. `total`: Sum of the latents of its cells,
    `(n, n_latent)`. `size`: Number of its cells, `(n,)`.
    """

    context: np.ndarray
    batch: np.ndarray
    total: np.ndarray
    size: np.ndarray

    @classmethod
    def of(cls, mean: torch.Tensor, context: np.ndarray, batch: np.ndarray) -> Self:
        """Return the populations of control cells with these latents, contexts and batches."""
        pairs, place = np.unique(np.stack([context, batch], axis=1), axis=0, return_inverse=True)
        total = np.zeros((len(pairs), mean.shape[1]))
        np.add.at(total, place, mean.double().numpy())
        return cls(pairs[:, 0], pairs[:, 1], total, np.bincount(place, minlength=len(pairs)))

    def and_of(self, others: Populations) -> Populations:
        """Return these, and of others those of contexts that are not among these."""
        new = ~np.isin(others.context, self.context)
        pairs = zip(self._arrays(), others._arrays(), strict=True)
        return Populations(*(np.concatenate([a, b[new]]) for a, b in pairs))

    def means(self, context: np.ndarray, batch: np.ndarray) -> torch.Tensor:
        """Return the mean control of each cell's context and batch, `(n_cells, n_latent)`.

        Where a batch has no control, that of the context. Of a context without controls nothing is
        known: its cells are told the mean of all, which is warned of.
        """
        pairs, place = np.unique(np.stack([context, batch], axis=1), axis=0, return_inverse=True)
        found, lost = np.empty((len(pairs), self.total.shape[1])), []
        for i, (own_context, own_batch) in enumerate(pairs):
            here = self.context == own_context
            exact = here & (self.batch == own_batch)
            if not here.any():
                lost.append(int((place == i).sum()))
            chosen = exact if exact.any() else here if here.any() else np.ones_like(here)
            found[i] = self.total[chosen].sum(0) / self.size[chosen].sum()
        if lost:
            warn(
                f"{sum(lost)} cells are of contexts without control cells, in training and here: "
                "they are compared with the mean of all controls. Add controls of their context."
            )
        return torch.from_numpy(found[place]).float()

    def _arrays(self) -> tuple[np.ndarray, ...]:
        return self.context, self.batch, self.total, self.size


def means_of_own(cells: Reference, mean: torch.Tensor) -> torch.Tensor:
    """Return the mean latent of the control cells that share each one's labels."""
    if cells.labels.columns.empty:
        return mean.mean(0, keepdim=True).expand_as(mean)
    label = cells.labels.groupby(list(cells.labels.columns), observed=True).ngroup().to_numpy()
    place = torch.from_numpy(label.astype(np.int64))
    sums = torch.zeros(int(label.max()) + 1, mean.shape[1]).index_add_(0, place, mean)
    return (sums / torch.bincount(place)[:, None])[place]
