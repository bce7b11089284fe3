"""Carry cells along a flow."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import UNS_KEY, Key, SchemaError
from scvi_perturb.data.condition import Condition
from scvi_perturb.data.reader import read_rows, row_sums
from scvi_perturb.data.screen import Screen
from scvi_perturb.generative.samplers import SamplerConfig
from scvi_perturb.model.base.draw import (
    TransportedCells,
    batch_codes,
    cell_obs,
    transported_adata,
)
from scvi_perturb.model.base.latents import (
    Populations,
    chosen_rows,
    chunks,
    encode_cells,
    means_of_own,
)
from scvi_perturb.model.latent.model import LatentModel
from scvi_perturb.module.base import ConditionBatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.data.reader import ScreenReader
    from scvi_perturb.generative.samplers import SamplerName
    from scvi_perturb.model.base.draw import Output
    from scvi_perturb.model.base.reference import Plan
    from scvi_perturb.module.flow import LatentFlow


@dataclass(frozen=True, slots=True)
class FlowCells:
    """The condition of each of `n` cells, and what a flow is told besides.

    `conditions`: The different conditions. `which`: Condition of each cell, `(n,)`. `reference`:
    Latent of the control cell or mean of the control population, `(n, n_latent)`. `context`: Codes
    of contexts, `(n,)`.
    """

    conditions: tuple[Condition, ...]
    which: np.ndarray
    reference: torch.Tensor
    context: np.ndarray

    def under(self, condition: Condition) -> FlowCells:
        """Return the same cells under another condition."""
        return FlowCells((condition,), np.zeros_like(self.which), self.reference, self.context)

    def as_control(self) -> FlowCells:
        """Return the same cells under control."""
        return self.under(Condition())

    @property
    def is_control(self) -> torch.Tensor:
        """Whether each cell is under control, `(n,)`."""
        kinds = np.array([condition.is_control for condition in self.conditions])
        return torch.from_numpy(kinds[self.which])


class LatentCells(NamedTuple):
    """Cells of AnnData as a flow takes them: `n` of them.

    `names`: Of the cells. `cells`: Their conditions. `rows`: Their places in the data. `latent`,
    `log_variance`: Posterior of their latents, `(n, n_latent)`. `batch`: Codes of batches, `(n,)`.
    """

    names: pd.Index
    rows: np.ndarray
    cells: FlowCells
    latent: torch.Tensor
    log_variance: torch.Tensor
    batch: np.ndarray


@checked
class TransportMixin(LatentModel):
    """Verbs of models that carry cells along trajectories."""

    #: Populations of training controls, see `Populations`.
    populations_: tuple[np.ndarray, ...]

    @property
    def _flow(self) -> LatentFlow:
        return cast("LatentFlow", self.module.generator)

    @property
    def _from_control(self) -> bool:
        return self._flow.from_cell

    def _condition_batch(self, cells: FlowCells) -> ConditionBatch:
        """Return conditions, references and contexts of cells, on the device."""
        device = self._device()
        tensors = self._vocabulary.tensors(list(cells.conditions), self._seen())
        return ConditionBatch(
            type(tensors)(*(t.to(device) for t in tensors)),
            torch.from_numpy(cells.which).to(device),
            cells.reference.to(device),
            torch.from_numpy(cells.context).to(device),
        )

    def _follow(
        self,
        latent: torch.Tensor,
        cells: FlowCells,
        times: Sequence[float],
        config: SamplerConfig,
    ) -> list[torch.Tensor]:
        """Return latents at each of the times after the first, each `(n, n_latent)`."""
        self.module.eval()
        parts: list[list[torch.Tensor]] = []
        batch = self._condition_batch(cells)
        for rows in chunks(len(latent)):
            part = batch.rows(torch.from_numpy(rows).to(self._device()))
            start = latent[rows].to(self._device())
            path = self._flow.follow(part, start, times=times, sampler=config)
            parts.append([state.cpu() for state in path])
        return [torch.cat(states) for states in zip(*parts, strict=True)]

    def _carry(
        self, latent: torch.Tensor, start: FlowCells, end: FlowCells, config: SamplerConfig
    ) -> torch.Tensor:
        """Carry latents from their conditions to others, by way of the source.

        Where control cells are the source, a control cell is there already.
        """
        for cells, times in ((start, (1.0, 0.0)), (end, (0.0, 1.0))):
            stays = cells.is_control & self._from_control
            if stays.all():
                continue
            (moved,) = self._follow(latent, cells, times, config)
            latent = torch.where(stays[:, None], latent, moved)
        return latent

    def _given_cells(
        self, adata: AnnData | MuData | None, indices: Sequence[int] | None, key: str | None = None
    ) -> LatentCells:
        """Read cells with their conditions; their reference is the controls of training."""
        self._check_trained()
        self.module.eval()
        reader = self._reader(adata)
        rows = chosen_rows(indices, len(reader), key)
        if len(rows) == 0:
            msg = "No cells were given: `indices` or the data are empty."
            raise SchemaError(msg)
        latent, log_variance = encode_cells(
            self._representation(), lambda i: reader[rows[i]], len(rows), self._device()
        )
        codes = {k: reader.codes[k][rows] for k in (Key.CONDITION, Key.CONTEXT, Key.BATCH)}
        table = Screen.from_registry(self._manager(adata).registry).table
        used, which = np.unique(codes[Key.CONDITION], return_inverse=True)
        conditions = tuple(table.conditions[code] for code in used)
        context, batch = codes[Key.CONTEXT], codes[Key.BATCH]
        reference = latent
        if not self._from_control:
            reference = self._populations(reader).means(context, batch)
        data = self._plain_adata() if adata is None else adata
        return LatentCells(
            data.obs_names[rows],
            rows,
            FlowCells(conditions, which, reference, context),
            latent,
            log_variance,
            batch,
        )

    def _populations(self, reader: ScreenReader) -> Populations:
        """Return the populations of training controls, and of the data's own in new contexts."""
        trained = Populations(*self.populations_)
        codes = reader.codes
        new = ~np.isin(codes[Key.CONTEXT], trained.context) & (codes[Key.CONDITION] == 0)
        rows = np.flatnonzero(new)
        if len(rows) == 0:
            return trained
        stage, device = self._representation(), self._device()
        mean, _ = encode_cells(stage, lambda i: reader[rows[i]], len(rows), device)
        others = Populations.of(mean, codes[Key.CONTEXT][rows], codes[Key.BATCH][rows])
        return trained.and_of(others)

    def _after_training(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Remember the populations of controls: densities need no training cells then."""
        codes = reader.codes
        rows = train[codes[Key.CONDITION][train] == 0]
        stage, device = self._representation(), self._device()
        mean, _ = encode_cells(stage, lambda i: reader[rows[i]], len(rows), device)
        made = Populations.of(mean, codes[Key.CONTEXT][rows], codes[Key.BATCH][rows])
        self.populations_ = (made.context, made.batch, made.total, made.size)

    def _library_of(
        self, adata: AnnData | MuData | None, indices: Sequence[int] | None
    ) -> np.ndarray:
        """Return the library sizes of some cells, reading no others."""
        reader = self._reader(adata)
        rows = chosen_rows(indices, len(reader), None)
        if reader.library is not None:
            return reader.library[rows]
        return row_sums(read_rows(reader.counts, rows), len(rows)).astype(np.float32)

    def _output(self) -> dict[str, Any]:
        """Return what the writing of carried cells takes from the model."""
        return {
            "representation": self._representation(),
            "screen": self._screen,
            "device": self._device(),
        }

    def _carried_uns(
        self,
        config: SamplerConfig,
        seed: int | None,
        output: Output,
        round_trip: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> dict[str, Any]:
        """Return the provenance of carried cells, with the error of the way back."""
        units = self._units if output == "counts" else f"expected {self._units}"
        uns = self._provenance(config, seed, units)
        if round_trip is not None:
            back, before = round_trip
            missed = (back - before) / self._flow.latent_scale.cpu()
            uns[UNS_KEY]["round_trip_error"] = float(missed.square().mean().sqrt())
        return uns

    def _moments(self, times: Sequence[float]) -> tuple[float, ...]:
        """Check the times of a trajectory."""
        if not self._from_control:
            msg = (
                "A trajectory starts from control cells; this flow starts from noise, and what is "
                "between is no cell. Train with flow=FlowConfig(source='control')."
            )
            raise ValueError(msg)
        moments = tuple(float(t) for t in times)
        ordered = all(a < b for a, b in itertools.pairwise(moments))
        if not moments or not ordered or moments[0] < 0 or moments[-1] > 1:
            msg = f"times={moments}; expected rising numbers from 0 (control) to 1 (response)."
            raise ValueError(msg)
        return moments

    def transport(
        self,
        adata: AnnData | MuData | None,
        conditions: str | Sequence[str] | pd.DataFrame,
        *,
        output: Output = "counts",
        sampler: SamplerName | SamplerConfig = "heun",
        seed: int | None = 0,
    ) -> AnnData:
        """Carry each given control cell to each condition, along one trajectory.

        Unlike :meth:`sample`, a cell starts at its mean latent and all cells are used once.

        Parameters
        ----------
        adata
            Control cells with the genes of training; contexts and batches may be new. None takes
            the training controls.
        conditions
            As for :meth:`sample`; a row with a context takes the cells of that context.
        output
            `"counts"`, drawn at the cell's library size; or `"mean"`, expected counts.
        sampler
            Solver, or a :class:`~scvi_perturb.generative.SamplerConfig` with the number of
            evaluations and the guidance scale.
        seed
            Seed of the counts. Transport itself draws nothing.

        Returns
        -------
        AnnData
            One row a cell and condition, as from :meth:`sample`; `obsm["X_latent"]` has where
            it arrived. `uns["scvi_perturb"]["round_trip_error"]` is the root mean square, in
            standard deviations of the latent, by which the way back misses the start.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For an output or a sampler that is not known.
        """
        check_choice("output", output, ("counts", "mean"))
        config = SamplerConfig.of(sampler, self._samplers)
        plan = self._plan(conditions, adata, None, seed)
        cells = plan.cells
        self.module.eval()
        mean, _ = encode_cells(self._representation(), cells.read, len(cells), self._device())
        centre, at = means_of_own(cells, mean), torch.from_numpy(plan.reference)
        start = _starting(plan, centre[at])
        before = mean[at]
        after = self._carry(before, start.as_control(), start, config)
        back = self._carry(after, start, start.as_control(), config)
        result = transported_adata(
            TransportedCells(after, plan.library, self._batches(plan)),
            cell_obs(plan, self._screen),
            output=output,
            seed=seed,
            **self._output(),
        )
        result.uns = self._carried_uns(config, seed, output, (back, before))
        return result

    def invert(
        self,
        adata: AnnData | MuData | None = None,
        *,
        indices: Sequence[int] | None = None,
        output: Output = "counts",
        sampler: SamplerName | SamplerConfig = "heun",
        seed: int | None = 0,
    ) -> AnnData:
        """Carry each cell back to control: the state that leads to it under its condition.

        Parameters
        ----------
        adata
            Cells with the genes and columns of training; None for the data of training.
        indices
            Cells, in the order wanted; None for all.
        output, sampler, seed
            As for :meth:`transport`.

        Returns
        -------
        AnnData
            One row a cell, under the cell's name; `obs` has its condition as
            `inverted_condition`, with dose and time where there are any, its context and batch.
            Latents and round-trip error as for :meth:`transport`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, ValueError
            As for :meth:`transport`.
        """
        self._check_trained()
        check_choice("output", output, ("counts", "mean"))
        config = SamplerConfig.of(sampler, self._samplers)
        given = self._given_cells(adata, indices)
        own, before = given.cells, given.latent
        after = self._carry(before, own, own.as_control(), config)
        back = self._carry(after, own.as_control(), own, config)
        carried = TransportedCells(after, self._library_of(adata, indices), given.batch)
        obs = self._inverted_obs(adata, given)
        result = transported_adata(carried, obs, output=output, seed=seed, **self._output())
        result.uns = self._carried_uns(config, seed, output, (back, before))
        return result

    def trajectory(
        self,
        conditions: str | Sequence[str] | pd.DataFrame,
        times: Sequence[float],
        *,
        reference: AnnData | MuData | None = None,
        n_samples: int | None = 200,
        output: Output = "mean",
        sampler: SamplerName | SamplerConfig = "heun",
        seed: int | None = 0,
    ) -> AnnData:
        """Return cells on their way from control to a condition.

        The time of the flow is no time of the experiment: it orders the states between two
        distributions, along straight lines in the latent.

        Parameters
        ----------
        conditions, reference, n_samples
            As for :meth:`sample`.
        times
            Rising, from 0 (control) to 1 (response).
        output, sampler, seed
            As for :meth:`transport`.

        Returns
        -------
        AnnData
            One row a cell and time, times in turn; `obs["flow_time"]`; latents in
            `obsm["X_latent"]`.

        Raises
        ------
        NotTrainedError, UnknownPerturbationError, SchemaError
            As for :meth:`sample`.
        ValueError
            For times that do not rise from 0 to 1 or lie outside; for flows from noise, whose
            intermediate states are not cells.
        """
        check_choice("output", output, ("counts", "mean"))
        config = SamplerConfig.of(sampler, self._samplers)
        moments = self._moments(times)
        plan = self._plan(conditions, reference, n_samples, seed)
        self.module.eval()
        used, place = np.unique(plan.reference, return_inverse=True)
        mean, _ = encode_cells(
            self._representation(), lambda i: plan.cells.read(used[i]), len(used), self._device()
        )
        start = mean[torch.from_numpy(place)]
        path = self._follow(start, _starting(plan, start), (0.0, *moments), config)
        obs = cell_obs(plan, self._screen)
        every = pd.concat([obs.assign(flow_time=t) for t in moments])
        every.index = pd.Index([f"{n}_time{i}" for i in range(len(moments)) for n in obs.index])
        n = len(moments)
        carried = TransportedCells(
            torch.cat(path),
            np.tile(plan.library, n),
            np.tile(self._batches(plan), n),
        )
        result = transported_adata(carried, every, output=output, seed=seed, **self._output())
        result.uns = self._carried_uns(config, seed, output, None)
        return result

    def _batches(self, plan: Plan) -> np.ndarray:
        """Return the batch of each cell of a plan: the one asked for, or its own."""
        own = plan.cells.batch[plan.reference]
        asked = batch_codes(plan.request, self._screen, self._seen_batch())
        return own if asked is None else np.where(asked[plan.row] < 0, own, asked[plan.row])

    def _inverted_obs(self, adata: AnnData | MuData | None, given: LatentCells) -> pd.DataFrame:
        """Return the conditions that cells had, and their contexts and batches."""
        screen, own = self._screen, given.cells
        text = screen.table.frame(own.conditions).iloc[own.which].set_index(given.names)
        obs = pd.DataFrame({"inverted_condition": pd.Categorical(text["perturbation"])})
        obs.index = given.names
        for column, name in ((screen.keys.dose, "dose"), (screen.keys.time, "time")):
            if column is not None:
                obs[f"inverted_{name}"] = text[name]
        data = self._plain_adata() if adata is None else adata
        kept = [c for c in (*screen.keys.context, screen.keys.batch) if c in data.obs]
        return obs.join(data.obs.iloc[given.rows][kept].set_axis(given.names, axis=0))


def _starting(plan: Plan, latent: torch.Tensor) -> FlowCells:
    """Return the cells of a plan at these latents, under the conditions asked for."""
    context = plan.cells.context[plan.reference]
    return FlowCells(plan.request.conditions, plan.row, latent, context)
