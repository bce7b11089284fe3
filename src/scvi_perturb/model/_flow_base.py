"""Cells in a flow: where they are, under which condition, and how they are carried."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY, UNS_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb.data import Condition, read_rows
from scvi_perturb.data._reader import row_sums
from scvi_perturb.model._latents import chosen_rows, chunks, encode_cells
from scvi_perturb.model._populations import Populations
from scvi_perturb.model._screen import Screen
from scvi_perturb.model._two_stage import LatentModel
from scvi_perturb.module import Asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.data import ScreenReader
    from scvi_perturb.generative import SamplerConfig
    from scvi_perturb.model._carried import Output
    from scvi_perturb.module import LatentFlow, LatentSplines

__all__ = ["FlowBase", "FlowCells", "GivenCells"]


@dataclass(frozen=True, slots=True)
class FlowCells:
    """The condition of each of `n` cells, and what a flow is told besides.

    Attributes
    ----------
    conditions
        The different conditions.
    which
        Condition of each cell, `(n,)`.
    reference
        Latent of the control cell or mean of the control population, `(n, n_latent)`.
    context
        Codes of contexts, `(n,)`.
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


class GivenCells(NamedTuple):
    """Cells of AnnData as a flow takes them: `n` of them.

    Attributes
    ----------
    names
        Of the cells.
    cells
        Their conditions.
    rows
        Their places in the data.
    latent, log_variance
        Posterior of their latents, `(n, n_latent)`.
    batch
        Codes of batches, `(n,)`.
    """

    names: pd.Index
    rows: np.ndarray
    cells: FlowCells
    latent: torch.Tensor
    log_variance: torch.Tensor
    batch: np.ndarray


class FlowBase(LatentModel):
    """What the verbs of flows are made of."""

    #: Populations of training controls, see `Populations`.
    populations_: tuple[np.ndarray, ...]

    @property
    def _flow(self) -> LatentFlow | LatentSplines:
        return cast("LatentFlow | LatentSplines", self.module.generator)

    @property
    def _from_control(self) -> bool:
        return self._flow.from_cell

    def _asked(self, cells: FlowCells) -> Asked:
        """Return what is asked for cells, on the device."""
        device = self._device()
        tensors = self._vocabulary.tensors(list(cells.conditions), self._seen())
        return Asked(
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
        asked = self._asked(cells)
        for rows in chunks(len(latent)):
            part = asked.part(torch.from_numpy(rows).to(self._device()))
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
    ) -> GivenCells:
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
        codes = {k: reader.codes[k][rows] for k in (CONDITION_KEY, CONTEXT_KEY, BATCH_KEY)}
        table = Screen.from_registry(self._manager(adata).registry).table
        used, which = np.unique(codes[CONDITION_KEY], return_inverse=True)
        conditions = tuple(table.conditions[code] for code in used)
        context, batch = codes[CONTEXT_KEY], codes[BATCH_KEY]
        reference = latent
        if not self._from_control:
            reference = self._populations(reader).means(context, batch)
        data = self._plain_adata() if adata is None else adata
        return GivenCells(
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
        new = ~np.isin(codes[CONTEXT_KEY], trained.context) & (codes[CONDITION_KEY] == 0)
        rows = np.flatnonzero(new)
        if len(rows) == 0:
            return trained
        stage, device = self._representation(), self._device()
        mean, _ = encode_cells(stage, lambda i: reader[rows[i]], len(rows), device)
        others = Populations.of(mean, codes[CONTEXT_KEY][rows], codes[BATCH_KEY][rows])
        return trained.and_of(others)

    def _after_training(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Remember the populations of controls: densities need no training cells then."""
        codes = reader.codes
        rows = train[codes[CONDITION_KEY][train] == 0]
        stage, device = self._representation(), self._device()
        mean, _ = encode_cells(stage, lambda i: reader[rows[i]], len(rows), device)
        made = Populations.of(mean, codes[CONTEXT_KEY][rows], codes[BATCH_KEY][rows])
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
