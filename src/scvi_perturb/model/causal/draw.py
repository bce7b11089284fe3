"""Latents of cells of `CausalPerturbVAE`, and cells drawn from them under conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch

from scvi_perturb._core import Key, SchemaError, generator
from scvi_perturb.data.reader import ScreenReader
from scvi_perturb.data.screen import Screen
from scvi_perturb.model.base.draw import (
    Drawn,
    DrawOptions,
    TransportedCells,
    expected_proportions,
    rescaled,
    transported_adata,
)
from scvi_perturb.model.base.latents import chosen_rows, chunks, encode_cells
from scvi_perturb.module.base import ConditionTensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from scvi.data import AnnDataManager
    from torch import Tensor

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.model.base.draw import Output
    from scvi_perturb.model.base.reference import Plan, Reference, Vocabulary
    from scvi_perturb.module.base import CountParameters
    from scvi_perturb.module.causal import GroupedAutoencoder


#: Groups of latents.
LATENT_GROUPS: Final = ("identity", "state", "technical")
#: Groups that are kept from the reference by default; the state is drawn.
CONDITIONING: Final = ("identity", "technical")


def check_conditioning(conditioning: Sequence[str]) -> tuple[str, ...]:
    """Return the groups to keep; raise `ValueError` for a group that there is not."""
    kept = (conditioning,) if isinstance(conditioning, str) else tuple(conditioning)
    wrong = sorted(set(kept) - set(LATENT_GROUPS))
    if wrong:
        known = ", ".join(map(repr, LATENT_GROUPS))
        msg = f"conditioning={kept} has {wrong}; choose among {known}."
        raise ValueError(msg)
    return kept


def condition_tensors(
    network: GroupedAutoencoder, vocabulary: Vocabulary, conditions: Sequence[Condition]
) -> ConditionTensors:
    """Return conditions on the network's device; what is not known raises an error."""
    tensors = vocabulary.tensors(conditions, network.seen.cpu().numpy())
    return ConditionTensors(*(t.to(network.profile.device) for t in tensors))


def control_tensors(network: GroupedAutoencoder, n: int) -> ConditionTensors:
    """Return the control, `n` times."""
    zeros = torch.zeros(n, 1, dtype=torch.long, device=network.profile.device)
    dose = torch.ones(zeros.shape, device=zeros.device)
    return ConditionTensors(zeros, dose, zeros.bool(), torch.full_like(dose[:, 0], torch.nan))


def metadata_tensors(
    network: GroupedAutoencoder, columns: Mapping[str, np.ndarray]
) -> dict[str, Tensor]:
    """Return the metadata of cells, on the CPU; columns that are not there are missing."""
    device = network.profile.device
    tensors = {k: torch.from_numpy(np.ascontiguousarray(v)).to(device) for k, v in columns.items()}
    return {k: v.cpu() for k, v in network.fields(tensors).items()}


@dataclass(frozen=True, slots=True)
class CellLatents:
    """Posterior of the latents of cells, `(n, n_latent)` each, and their metadata."""

    mean: Tensor
    log_variance: Tensor
    fields: dict[str, Tensor]

    def draw(self, rows: np.ndarray, random: torch.Generator) -> Tensor:
        """Draw a latent of each of some cells, on the generator's device."""
        shape = (len(rows), self.mean.shape[1])
        return self.at(rows, torch.randn(shape, generator=random, device=random.device))

    def at(self, rows: np.ndarray, noise: Tensor) -> Tensor:
        """Return latents of some cells, so many standard deviations from their means."""
        at = torch.from_numpy(rows)
        scale = (0.5 * self.log_variance[at]).exp().to(noise.device)
        return self.mean[at].to(noise.device) + scale * noise

    def fields_of(self, rows: np.ndarray, device: torch.device) -> dict[str, Tensor]:
        """Return the metadata of some cells."""
        at = torch.from_numpy(rows)
        return {name: values[at].to(device) for name, values in self.fields.items()}


def encode_reference(
    network: GroupedAutoencoder, cells: Reference, used: np.ndarray
) -> CellLatents:
    """Encode reference cells `used`; their metadata are context and batch alone."""
    mean, log_variance = encode_cells(
        network, lambda rows: cells.read(used[rows]), len(used), network.profile.device
    )
    codes = {Key.CONTEXT: cells.context[used], Key.BATCH: cells.batch[used]}
    return CellLatents(mean, log_variance, metadata_tensors(network, codes))


@dataclass(frozen=True, slots=True)
class EncodedCells:
    """Cells of data with their latents; conditions and codes are of each cell."""

    names: pd.Index
    rows: np.ndarray  # places in the data
    latents: CellLatents
    conditions: ConditionTensors
    library: np.ndarray
    codes: dict[str, np.ndarray]
    reader: ScreenReader

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.rows)


def encode_data(
    network: GroupedAutoencoder,
    vocabulary: Vocabulary,
    data: AnnDataManager,
    indices: Sequence[int] | None = None,
    key_added: str | None = None,
    *,
    with_conditions: bool = True,
) -> EncodedCells:
    """Encode cells of registered data; without conditions these need not be known."""
    network.eval()
    reader, screen = ScreenReader(data), Screen.from_registry(data.registry)
    rows = chosen_rows(indices, len(reader), key_added)
    if len(rows) == 0:
        msg = "No cells were given: `indices` or the data are empty."
        raise SchemaError(msg)
    device = network.profile.device
    mean, log_variance = encode_cells(network, lambda i: reader[rows[i]], len(rows), device)
    codes = {k: reader.codes[k][rows] for k in (Key.CONDITION, Key.CONTEXT, Key.BATCH)}
    fields = metadata_tensors(network, codes | {k: v[rows] for k, v in reader.metadata.items()})
    conditions = control_tensors(network, len(rows))
    if with_conditions:
        used, which = np.unique(codes[Key.CONDITION], return_inverse=True)
        named = [screen.table.conditions[code] for code in used]
        known = condition_tensors(network, vocabulary, named)
        conditions = known.rows(torch.from_numpy(which).to(device))
    adata = data.adata if screen.rna_modality is None else data.adata.mod[screen.rna_modality]
    library = reader.library_sizes() if reader.library is None else reader.library
    latents = CellLatents(mean, log_variance, fields)
    return EncodedCells(
        adata.obs_names[rows], rows, latents, conditions, library[rows], codes, reader
    )


@torch.inference_mode()
def unperturbed_latents(network: GroupedAutoencoder, cells: EncodedCells) -> Tensor:
    """Return latents whose state is freed of the shift of their condition, on the CPU."""
    device, latents = network.profile.device, cells.latents
    mean, log_variance = latents.mean.to(device), latents.log_variance.to(device)
    return network.unperturbed(mean, log_variance, cells.conditions).cpu()


@dataclass(frozen=True, slots=True)
class ReferenceDraws:
    """Draws from reference cells, of whose latents the groups `conditioning` are kept."""

    network: GroupedAutoencoder
    latents: CellLatents
    conditioning: tuple[str, ...]
    random: torch.Generator

    def latent(
        self, place: np.ndarray, conditions: ConditionTensors, batch: np.ndarray | None = None
    ) -> Tensor:
        """Draw latents of the cells at `place` under conditions, `(n, n_latent)`.

        `batch` has the code of the batch asked for, -1 for a cell's own; None asks for none.
        """
        network, random, n = self.network, self.random, len(place)
        own = network.groups(self.latents.draw(place, random))
        fields = self.latents.fields_of(place, random.device)
        identity, technical, basal = own.identity, own.technical, own.state
        if "identity" not in self.conditioning:
            identity = network.identity_prior.draw(fields, n, random)
        other = torch.zeros(n, dtype=torch.bool, device=random.device)
        if batch is not None:
            asked = torch.from_numpy(batch).to(random.device)
            other = asked >= 0
            (name,) = network.columns["technical"][:1]
            levels = network.batch_levels[asked.clamp_min(0), 0]
            fields = fields | {name: torch.where(other, levels, fields[name])}
        if "technical" not in self.conditioning:
            other = torch.ones_like(other)
        if bool(other.any()):
            drawn = network.technical_prior.draw(fields, n, random)
            drawn = torch.cat([technical[:, :1], drawn], dim=1)
            technical = torch.where(other[:, None], drawn, technical)
        if "state" not in self.conditioning:
            basal = torch.randn(basal.shape, generator=random, device=random.device)
        state = basal + network.draw_shift(conditions, identity, random)
        return torch.cat([identity, state, technical], dim=1)


def draw_conditions(
    network: GroupedAutoencoder,
    plan: Plan,
    *,
    conditions: ConditionTensors,
    options: DrawOptions,
    conditioning: tuple[str, ...],
    partial: bool,
    seed: int | None,
) -> Iterator[Drawn]:
    """Yield the cells of a plan in chunks, under the conditions of the rows of the request.

    `partial` says that the genes are a part of the library.
    """
    device, cells = network.profile.device, plan.cells
    used, place = np.unique(plan.reference, return_inverse=True)
    latents = encode_reference(network, cells, used)
    draws = ReferenceDraws(network, latents, conditioning, generator(seed, device))
    # A generator of its own: what is drawn does not depend on how the reference is looked at.
    control = ReferenceDraws(network, latents, conditioning, generator(seed, device))
    group, factors = _reference_correction(control, cells, used)
    for chunk in chunks(len(plan)):
        rows = conditions.rows(torch.from_numpy(plan.row[chunk]).to(device))
        batch = None if options.batch is None else options.batch[plan.row[chunk]]
        library = np.asarray(plan.library[chunk], dtype=np.float32)
        if options.library_factor is not None:
            library = library * options.library_factor[plan.row[chunk]].astype(np.float32)
        if options.library_size is not None:
            library = np.full(len(chunk), options.library_size, dtype=np.float32)
        size = torch.from_numpy(library).to(device)
        with torch.inference_mode():
            latent = draws.latent(place[chunk], rows, batch)
            drawn = Drawn(chunk, size, network.decode(latent, size, None, rows))
        own = factors[group[place[chunk]]]
        yield rescaled(drawn, own, network.likelihood, partial=partial)


@dataclass(frozen=True, slots=True)
class ConditionedLatents:
    """Cells as latents, on the CPU, with the library size and the condition of each."""

    latent: Tensor
    library: np.ndarray
    conditions: ConditionTensors
    weight: Tensor | None = None  # of each component, `(n_cells, m)`, for sums of operators


def decoded_adata(
    network: GroupedAutoencoder,
    screen: Screen,
    cells: ConditionedLatents,
    obs: pd.DataFrame,
    *,
    output: Output,
    seed: int | None,
) -> AnnData:
    """Return cells as AnnData, with counts or their means."""
    device = network.profile.device

    def decode(rows: np.ndarray, own: Tensor, size: Tensor) -> CountParameters:
        at = torch.from_numpy(rows).to(device)
        factor = None if cells.weight is None else cells.weight[at]
        return network.decode(own, size, None, cells.conditions.rows(at), factor)

    batch = np.zeros(len(cells.latent), dtype=np.int64)
    return transported_adata(
        TransportedCells(cells.latent, cells.library, batch),
        obs,
        representation=network,
        screen=screen,
        output=output,
        seed=seed,
        device=device,
        decode=decode,
    )


_LEAST_FACTOR, _MOST_FACTOR = 0.2, 5.0
#: Variance of a gene's ratio below which nothing is gained by knowing it better.
_LEAST_VARIANCE: Final = 1e-4


def reference_factors(
    parts: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray]], n_groups: int, n_genes: int
) -> np.ndarray:
    """Return the factor of each gene in each group of reference cells, `(n_groups, n_genes)`.

    `parts` are the groups, counts and expected counts of some of the cells in turn.
    """
    n_cells = np.zeros(n_groups, dtype=np.int64)
    observed, expected, squared = np.zeros((3, n_groups, n_genes))
    for group, counts, means in parts:
        for own in np.unique(group):
            x, mean = counts[group == own], means[group == own]
            observed[own] += x.sum(axis=0)
            expected[own] += mean.sum(axis=0)
            squared[own] += ((x - mean) ** 2).sum(axis=0)
            n_cells[own] += len(x)
    sums = zip(observed, expected, squared, n_cells.tolist(), strict=True)
    return np.stack([_shrunken_ratios(*own) for own in sums])


def _shrunken_ratios(
    observed: np.ndarray, expected: np.ndarray, squared: np.ndarray, n_cells: int
) -> np.ndarray:
    """Return observed over expected sums, shrunk towards one as far as chance explains them.

    The variance beyond that of chance says how far (James-Stein); of a single cell all are one.
    """
    if n_cells < 2:
        return np.ones_like(observed)
    expected = np.maximum(expected, 1e-9)
    ratio = observed / expected
    chance = squared / expected**2 * (n_cells / (n_cells - 1)) + _LEAST_VARIANCE
    weight = 1.0 / chance
    scatter = float((weight * ((ratio - 1.0) ** 2 - chance)).sum() / weight.sum())
    if scatter <= 0:
        return np.ones_like(ratio)
    factors: np.ndarray = 1.0 + (ratio - 1.0) * scatter / (scatter + chance)
    return np.clip(factors, _LEAST_FACTOR, _MOST_FACTOR)


def _reference_correction(
    draws: ReferenceDraws, cells: Reference, used: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the group of each reference cell used, and the factors of genes of each group."""
    network, codes = draws.network, np.stack([cells.context[used], cells.batch[used]], axis=1)
    groups, group = np.unique(codes, axis=0, return_inverse=True)
    group = group.reshape(-1)

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        for rows in chunks(len(used)):
            batch = cells.read(used[rows])
            size = batch[Key.LIBRARY].to(network.profile.device)
            with torch.inference_mode():
                own = draws.latent(rows, control_tensors(network, len(rows)))
                drawn = Drawn(rows, size, network.decode(own, size, None, None))
            share = expected_proportions(drawn, network.likelihood)
            yield group[rows], batch[Key.X].numpy(), share * batch[Key.LIBRARY].numpy()[:, None]

    return group, reference_factors(parts(), len(groups), network.n_genes)
