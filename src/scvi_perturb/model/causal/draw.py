"""Draw latents and cells of `CausalPerturbVAE`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import numpy as np
import pandas as pd
import torch

from scvi_perturb._constants import (
    BATCH_KEY,
    CONDITION_KEY,
    CONTEXT_KEY,
    LIBRARY_KEY,
    METADATA_PREFIX,
    UNS_KEY,
)
from scvi_perturb._errors import SchemaError
from scvi_perturb._random import generator
from scvi_perturb.data.condition import Condition
from scvi_perturb.generative.samplers import SamplerConfig
from scvi_perturb.model.base.draw import (
    Carried,
    Drawn,
    DrawOptions,
    Output,
    carried_adata,
    expected_proportions,
)
from scvi_perturb.model.base.latents import chosen_rows, chunks, encode_cells
from scvi_perturb.model.base.recentre import moved
from scvi_perturb.model.base.setup import Screen, check_folder, check_training_cells
from scvi_perturb.model.causal.fit import CausalFit, reference_factors
from scvi_perturb.model.causal.setup import CausalSetup
from scvi_perturb.module.base import ConditionTensors
from scvi_perturb.module.causal import Groups, state_divergence
from scvi_perturb.train.plan import TrainConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb._typing import Batch
    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.model.base.draw import LibrarySize, Plan
    from scvi_perturb.model.base.request import Reference, Request
    from scvi_perturb.module.base import CountParameters
    from scvi_perturb.module.causal import CausalModule, GroupedAutoencoder

__all__ = [
    "CONDITIONING",
    "GROUPS",
    "CausalDraw",
    "CausalGiven",
    "CausalTraining",
    "GivenCells",
    "Latents",
    "OperatorSums",
    "check_conditioning",
    "latent_names",
]


class CausalTraining(CausalSetup):
    """`train` of models of latent groups."""

    module: CausalModule
    #: Which latents are in use, a row each: group, and whether its mean varies between cells.
    active_units_: pd.DataFrame | None
    #: Covariance of identity within contexts and between them, and the mean over contexts.
    identity_spread_: dict[str, np.ndarray]

    def train(
        self,
        max_epochs: int | None = None,
        *,
        split: Split | None = None,
        batch_size: int = 256,
        seed: int = 0,
        checkpoint_dir: str | Path | None = None,
        config: TrainConfig | None = None,
        **trainer_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train the model.

        Parameters
        ----------
        max_epochs
            Epochs at most; None chooses by the number of cells. Training stops before when the
            validation loss no longer falls, with the best weights.
        split
            Which cells train, validate and are held out, see :func:`scvi_perturb.data.split`;
            None validates on a tenth of the cells.
        batch_size
            Cells a batch.
        seed
            Seed of order, noise and dropout.
        checkpoint_dir
            Where the state of the run is written; calling `train` again with the same folder
            after a kill goes on where it stopped. A folder of another run is refused.
        config
            Optimisation and stopping, of which `representation` is read.
        **trainer_kwargs
            For scvi-tools' Trainer: `accelerator`, `devices`, `strategy`, `enable_progress_bar`,
            `precision`, ...

        Raises
        ------
        SchemaError
            When the model has no data; when training cells of a screen hold no control, in all or
            in one context, too few treated cells, cells without counts, or library sizes below
            the counts; when `checkpoint_dir` holds another run.
        """
        reader = self._reader(None)
        parts = self._split_cells(split, len(reader), seed)
        self._check_cells(reader, parts.train)
        config = config or TrainConfig()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        if folder is not None:
            asked = {"max_epochs": max_epochs, "batch_size": batch_size}
            check_folder(
                folder, self._run_description(parts, asked | {"seed": seed, "config": config})
            )
        fit = CausalFit(self, reader, parts, config, trainer_kwargs, folder)
        fit.prepare(seed=seed)
        fit.optimise(max_epochs, batch_size=batch_size, seed=seed)
        self._record_trained_pairs(reader.codes, parts.train)
        fit.finish(seed=seed)
        self._record_training(reader, parts, split, seed)

    def _check_cells(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Raise unless there is something to learn from."""
        screen = self._screen
        if screen.is_perturbed and not screen.real_values:
            check_training_cells(reader, train, screen)
        elif len(train) < 2:
            msg = f"There are {len(train)} training cells or samples; at least two are needed."
            raise SchemaError(msg)

    def _remember_activity(self, active: np.ndarray) -> None:
        """Remember which latents are in use."""
        names = latent_names(self.module.representation.sizes)
        groups = ["technical" if n == "depth" else n.rpartition("_")[0] for n in names]
        table = {"group": groups, "active": active.astype(bool)}
        self.active_units_ = pd.DataFrame(table, index=names)

    def _remember_spread(self, latent: torch.Tensor, codes: dict[str, np.ndarray]) -> None:
        """Remember how identity varies within contexts and between them."""
        identity = self.module.representation.groups(latent).identity.double().numpy()
        _, context = np.unique(codes[CONTEXT_KEY], return_inverse=True)
        size = np.bincount(context)
        total = np.zeros((len(size), identity.shape[1]))
        np.add.at(total, context, identity)
        means = total / size[:, None]
        away = identity - means[context]
        centre = means.mean(axis=0)
        n_contexts = len(size)
        within = away.T @ away / max(len(identity) - n_contexts, 1)
        apart = means - centre
        # Of few contexts only variances are known.
        between = np.diag(apart.T @ apart).copy() / max(n_contexts - 1, 1)
        between = between if n_contexts > 1 else np.diag(within).copy()
        self.identity_spread_ = {
            "within": within,
            "between": np.diag(between + 1e-6),
            "centre": centre,
        }


def latent_names(sizes: tuple[int, int, int]) -> list[str]:
    """Return the names of latents: `identity_0`, ..., the depth first of the technical ones."""
    groups = ("identity", "state", "technical")
    names = [f"{group}_{i}" for group, n in zip(groups, sizes, strict=True) for i in range(n)]
    first = sizes[0] + sizes[1]
    kept, technical = names[:first], names[first:-1]
    return [*kept, "depth", *technical]


GROUPS: Final = ("identity", "state", "technical")
#: What is kept from the reference by default; the state is drawn.
CONDITIONING: Final = ("identity", "technical")


@dataclass(frozen=True, slots=True)
class Latents:
    """Posterior of the latents of cells, `(n, n_latent)` each, and their metadata."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    fields: dict[str, torch.Tensor]

    def draw(self, rows: np.ndarray, random: torch.Generator) -> torch.Tensor:
        """Draw a latent of each of some cells, on the generator's device."""
        shape = (len(rows), self.mean.shape[1])
        return self.at(rows, torch.randn(shape, generator=random, device=random.device))

    def at(self, rows: np.ndarray, noise: torch.Tensor) -> torch.Tensor:
        """Return latents of some cells, so many standard deviations from their means."""
        at = torch.from_numpy(rows)
        spread = (0.5 * self.log_variance[at]).exp().to(noise.device)
        return self.mean[at].to(noise.device) + spread * noise

    def fields_of(self, rows: np.ndarray, device: torch.device) -> dict[str, torch.Tensor]:
        """Return the metadata of some cells."""
        at = torch.from_numpy(rows)
        return {name: values[at].to(device) for name, values in self.fields.items()}


def check_conditioning(conditioning: Sequence[str]) -> tuple[str, ...]:
    """Return groups to be kept, checked.

    Raises
    ------
    ValueError
        For a group that there is not.
    """
    kept = (conditioning,) if isinstance(conditioning, str) else tuple(conditioning)
    wrong = sorted(set(kept) - set(GROUPS))
    if wrong:
        msg = f"conditioning={kept} has {wrong}; choose among {', '.join(map(repr, GROUPS))}."
        raise ValueError(msg)
    return kept


class CausalDraw(CausalTraining):
    """Draws of models of latent groups."""

    @property
    def _network(self) -> GroupedAutoencoder:
        return self.module.representation

    def _seen(self) -> np.ndarray:
        seen: np.ndarray = self._network.seen.cpu().numpy()
        return seen

    def _seen_batch(self) -> np.ndarray:
        network = self._network
        if not network.columns["technical"] or network.batch_levels.shape[1] == 0:
            return np.ones(len(self._screen.batches), dtype=bool)
        seen = cast("torch.Tensor", network.technical_prior.metadata.seen_0)
        batches: np.ndarray = seen[network.batch_levels[:, 0]].cpu().numpy()
        return batches

    def _draw(
        self,
        request: Request,
        cells: Reference,
        plan: Plan,
        *,
        sampler: SamplerConfig | None = None,
        seed: int | None,
        library_size: LibrarySize = "reference",
        conditioning: tuple[str, ...] = CONDITIONING,
    ) -> Iterator[Drawn]:
        """Yield the distribution of the cells of a plan, chunk by chunk."""
        del sampler
        self.module.eval()
        device = self._device()
        random = generator(seed, device)
        conditions = self._condition_tensors(request.conditions)
        options = DrawOptions.make(
            request,
            self._screen,
            library_size=library_size,
            shifts=self.library_shifts_,
            seen_batch=self._seen_batch(),
            population=False,
        )
        used, place = np.unique(plan.reference, return_inverse=True)
        latents = self._latents_of(cells, used)
        group, factors = self._anchored(cells, used, latents, conditioning, seed)
        for chunk in chunks(len(plan)):
            rows = conditions.rows(torch.from_numpy(plan.row[chunk]).to(device))
            batch = None if options.batch is None else options.batch[plan.row[chunk]]
            with torch.inference_mode():
                latent = self._moved(latents, place[chunk], rows, batch, conditioning, random)
                library = self._library(cells, plan, chunk, options).to(device)
                drawn = Drawn(chunk, library, self._network.decode(latent, library, None, rows))
            yield moved(
                drawn,
                factors[group[place[chunk]]],
                self._network.likelihood,
                partial=self._screen.library_key is not None,
            )

    def _anchored(
        self,
        cells: Reference,
        used: np.ndarray,
        latents: Latents,
        conditioning: tuple[str, ...],
        seed: int | None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the group of each reference cell used, and the factors of genes of each group."""
        codes = np.stack([cells.context[used], cells.batch[used]], axis=1)
        _, group = np.unique(codes, axis=0, return_inverse=True)
        group = group.reshape(-1)
        random = generator(seed, self._device())
        control = self._condition_tensors([Condition()])

        def parts() -> Iterator[tuple[np.ndarray, Batch, torch.Tensor]]:
            for rows in chunks(len(used)):
                batch = cells.read(used[rows])
                at = torch.zeros(len(rows), dtype=torch.long, device=self._device())
                with torch.inference_mode():
                    own = self._moved(latents, rows, control.rows(at), None, conditioning, random)
                    size = batch[LIBRARY_KEY].to(self._device())
                    parameters = self._network.decode(own, size, None, None)
                drawn = Drawn(rows, size, parameters)
                share = expected_proportions(drawn, self._network.likelihood)
                yield group[rows], batch, torch.from_numpy(share)

        found = reference_factors(parts(), self._network.n_genes)
        return group, np.stack([found[i] for i in range(len(found))])

    def _moved(
        self,
        latents: Latents,
        place: np.ndarray,
        conditions: ConditionTensors,
        batch: np.ndarray | None,
        conditioning: tuple[str, ...],
        random: torch.Generator,
    ) -> torch.Tensor:
        """Return latents under conditions, `(n, n_latent)`.

        `batch` has the code of the batch asked for, -1 for a cell's own; None asks for none.
        """
        network, n, device = self._network, len(place), random.device
        own = network.groups(latents.draw(place, random))
        fields = latents.fields_of(place, device)
        identity, technical = own.identity, own.technical
        if "identity" not in conditioning:
            identity = network.identity_prior.draw(fields, n, random)
        other = torch.zeros(n, dtype=torch.bool, device=device)
        if batch is not None:
            asked = torch.from_numpy(batch).to(device)
            other = asked >= 0
            (name,) = network.columns["technical"][:1]
            levels = network.batch_levels[asked.clamp_min(0), 0]
            fields = fields | {name: torch.where(other, levels, fields[name])}
        if "technical" not in conditioning:
            other = torch.ones_like(other)
        if bool(other.any()):
            drawn = network.technical_prior.draw(fields, n, random)
            drawn = torch.cat([technical[:, :1], drawn], dim=1)
            technical = torch.where(other[:, None], drawn, technical)
        basal = own.state
        if "state" not in conditioning:
            basal = torch.randn(basal.shape, generator=random, device=device)
        state = basal + self._response(conditions, identity, random)
        return torch.cat([identity, state, technical], dim=1)

    def _response(
        self, conditions: ConditionTensors, identity: torch.Tensor, random: torch.Generator
    ) -> torch.Tensor:
        """Return the shift of each cell's state, 0 for those drawn not to respond."""
        odds = self._network.log_odds(conditions)
        responds = torch.rand(odds.shape, generator=random, device=odds.device) < odds.sigmoid()
        return self._network.shift(conditions, identity) * responds[:, None]

    def _condition_tensors(self, conditions: Sequence[Condition]) -> ConditionTensors:
        tensors = self._vocabulary.tensors(conditions, self._seen())
        return ConditionTensors(*(t.to(self._device()) for t in tensors))

    def _latents_of(self, cells: Reference, used: np.ndarray) -> Latents:
        """Encode reference cells `used`; metadata beyond context and batch are missing."""
        mean, log_variance = encode_cells(
            self._network, lambda rows: cells.read(used[rows]), len(used), self._device()
        )
        tensors = {
            CONTEXT_KEY: torch.from_numpy(cells.context[used]),
            BATCH_KEY: torch.from_numpy(cells.batch[used]),
        }
        return Latents(mean, log_variance, self._fields_of(tensors))

    def _fields_of(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the metadata of cells, on the CPU; columns that are not there are missing."""
        n = len(tensors[CONTEXT_KEY])
        tensors = dict(tensors)
        for column in self._screen.metadata:
            missing = torch.full((n,), torch.nan)
            if column.levels is not None:
                missing = torch.full((n,), -1, dtype=torch.long)
            tensors.setdefault(METADATA_PREFIX + column.name, missing)
        device = self._device()
        fields = self._network.fields({k: v.to(device) for k, v in tensors.items()})
        return {k: v.cpu() for k, v in fields.items()}

    def _library(
        self, cells: Reference, plan: Plan, chunk: np.ndarray, options: DrawOptions
    ) -> torch.Tensor:
        library = np.asarray(cells.library[plan.reference[chunk]], dtype=np.float32)
        if options.library_factor is not None:
            library = library * options.library_factor[plan.row[chunk]].astype(np.float32)
        if options.library_size is not None:
            library = np.full(len(chunk), options.library_size, dtype=np.float32)
        return torch.from_numpy(library)

    def _groups(self, latent: torch.Tensor) -> Groups:
        return self._network.groups(latent)


class OperatorSums(CausalDraw):
    """Sums and differences of operators in place of conditions."""

    def _sums(
        self, sums: Mapping[str, Mapping[str, float]]
    ) -> tuple[ConditionTensors, torch.Tensor, pd.DataFrame]:
        """Return sums as conditions with weights, at reference doses and times, and their names.

        Raises
        ------
        UnknownPerturbationError
            For a perturbation neither trained on nor with features.
        SchemaError
            For an empty sum, or a weight that is not a finite number.
        """
        seen, n = self._seen(), max([len(parts) for parts in sums.values()] + [1])
        component = np.zeros((len(sums), n), dtype=np.int64)
        weight = np.zeros((len(sums), n), dtype=np.float32)
        mask = np.zeros((len(sums), n), dtype=bool)
        for i, (name, parts) in enumerate(sums.items()):
            if not parts or not np.isfinite(np.array(list(parts.values()), dtype=float)).all():
                msg = f"{name!r} is {dict(parts)}; expected finite weights of perturbations."
                raise SchemaError(msg)
            for j, (perturbation, value) in enumerate(parts.items()):
                component[i, j] = self._vocabulary.id_of(perturbation, seen)
                weight[i, j], mask[i, j] = value, True
        ids = torch.from_numpy(component).to(self._device())
        dose = self._network.operators.reference_dose[ids]
        time = torch.full((len(sums),), torch.nan, device=self._device())
        tensors = ConditionTensors(ids, dose, torch.from_numpy(mask).to(self._device()), time)
        frame = pd.DataFrame({self._screen.keys.perturbation: list(sums)})
        return tensors, torch.from_numpy(weight).to(self._device()), frame


@dataclass(frozen=True, slots=True)
class GivenCells:
    """Cells of data.

    Attributes
    ----------
    names, rows
        Their names, and places in the data.
    latents
        Posterior of their latents, and their metadata.
    conditions
        Condition of each cell.
    library
        `(n_cells,)`.
    codes
        Condition, context and batch of each cell.
    reader
        The data.
    """

    names: pd.Index
    rows: np.ndarray
    latents: Latents
    conditions: ConditionTensors
    library: np.ndarray
    codes: dict[str, np.ndarray]
    reader: ScreenReader

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.rows)


class CausalGiven(CausalDraw):
    """What the verbs on given cells share."""

    def _given(
        self,
        adata: AnnData | MuData | None,
        indices: Sequence[int] | None,
        key_added: str | None = None,
        *,
        with_conditions: bool = True,
    ) -> GivenCells:
        """Read cells with their metadata and conditions, which need not be known if not asked."""
        self._check_trained()
        self.module.eval()
        reader = self._reader(adata)
        rows = chosen_rows(indices, len(reader), key_added)
        if len(rows) == 0:
            msg = "No cells were given: `indices` or the data are empty."
            raise SchemaError(msg)
        mean, log_variance = encode_cells(
            self._network, lambda i: reader[rows[i]], len(rows), self._device()
        )
        codes = {k: reader.codes[k][rows] for k in (CONDITION_KEY, CONTEXT_KEY, BATCH_KEY)}
        columns = {**codes, **{k: v[rows] for k, v in reader.metadata.items()}}
        tensors = {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in columns.items()}
        table = Screen.from_registry(self._manager(adata).registry).table
        used, which = np.unique(codes[CONDITION_KEY], return_inverse=True)
        named = [table.conditions[code] if with_conditions else Condition() for code in used]
        conditions = self._condition_tensors(named)
        data = self._plain_adata() if adata is None else adata
        return GivenCells(
            data.obs_names[rows],
            rows,
            Latents(mean, log_variance, self._fields_of(tensors)),
            conditions.rows(torch.from_numpy(which).to(self._device())),
            _library(reader, rows),
            codes,
            reader,
        )

    @torch.inference_mode()
    def _basal(self, given: GivenCells) -> torch.Tensor:
        """Return latents whose state is freed of the shift of their condition, on the CPU.

        A cell is freed of as much of the shift as it is likely to have responded.
        """
        device = self._device()
        mean = self._groups(given.latents.mean.to(device))
        variance = self._groups(given.latents.log_variance.to(device))
        shift = self._network.shift(given.conditions, mean.identity)
        odds = self._network.log_odds(given.conditions)
        _, responded = state_divergence((mean.state, variance.state), shift, odds)
        state = mean.state - responded[:, None] * shift
        return mean.with_state(state).cpu()

    def _decoded(
        self,
        latent: torch.Tensor,
        library: np.ndarray,
        conditions: ConditionTensors,
        obs: pd.DataFrame,
        *,
        output: Output,
        seed: int | None,
        weight: torch.Tensor | None = None,
    ) -> AnnData:
        """Return cells at latents as AnnData, counts or means; conditions are of each cell."""
        device = self._device()

        def decode(rows: np.ndarray, own: torch.Tensor, size: torch.Tensor) -> CountParameters:
            at = torch.from_numpy(rows).to(device)
            factor = None if weight is None else weight[at]
            return self._network.decode(own, size, None, conditions.rows(at), factor)

        carried = Carried(latent, library, np.zeros(len(latent), dtype=np.int64))
        result = carried_adata(
            carried,
            obs,
            representation=self._network,
            screen=self._screen,
            output=output,
            seed=seed,
            device=device,
            decode=decode,
        )
        units = self._units if output == "counts" else f"expected {self._units}"
        result.uns = self._one_pass(seed, units)
        return result

    def _one_pass(
        self, seed: int | None, units: str, *, library_size: str = "reference"
    ) -> dict[str, Any]:
        """Return the provenance of what is drawn in one pass of the network."""
        uns = self._provenance(SamplerConfig(), seed, units, library_size=library_size)
        uns[UNS_KEY] |= {"sampler": "one pass", "n_function_evaluations": 1}
        return uns


def _library(reader: ScreenReader, rows: np.ndarray) -> np.ndarray:
    if reader.library is not None:
        return reader.library[rows]
    sizes: np.ndarray = reader.library_sizes()[rows]
    return sizes
