"""Cells in a flow: where they are, under which condition, and how they are carried."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import torch

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY, UNS_KEY
from scvi_perturb.data import Condition
from scvi_perturb.model._latents import chosen_rows, chunks, encode_cells
from scvi_perturb.model._populations import means_of_controls
from scvi_perturb.model._screen import Screen
from scvi_perturb.model._two_stage import LatentModel
from scvi_perturb.module import Asked

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

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
    latent, log_variance
        Posterior of their latents, `(n, n_latent)`.
    library, batch
        Library sizes and codes of batches, `(n,)`.
    """

    names: pd.Index
    cells: FlowCells
    latent: torch.Tensor
    log_variance: torch.Tensor
    library: np.ndarray
    batch: np.ndarray


class FlowBase(LatentModel):
    """What the verbs of flows are made of."""

    @property
    def _flow(self) -> LatentFlow | LatentSplines:
        return cast("LatentFlow | LatentSplines", self.module.generator)

    @property
    def _from_control(self) -> bool:
        return self._flow.from_cell

    def _asked(self, cells: FlowCells, rows: np.ndarray) -> Asked:
        """Return what is asked for some of the cells, on the device."""
        device = self._device()
        tensors = self._vocabulary.tensors(list(cells.conditions), self._seen())
        return Asked(
            type(tensors)(*(t.to(device) for t in tensors)),
            torch.from_numpy(cells.which[rows]).to(device),
            cells.reference[rows].to(device),
            torch.from_numpy(cells.context[rows]).to(device),
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
        for rows in chunks(len(latent)):
            start = latent[rows].to(self._device())
            path = self._flow.follow(self._asked(cells, rows), start, times=times, sampler=config)
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
            controls, mean, _ = self._encoded_controls()
            reference = means_of_controls(controls, mean, context, batch)
        data = self._plain_adata() if adata is None else adata
        return GivenCells(
            data.obs_names[rows],
            FlowCells(conditions, which, reference, context),
            latent,
            log_variance,
            reader.library_sizes()[rows],
            batch,
        )

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
