"""Cells of data as latent groups take them: latents, conditions, metadata; and what they become."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY, UNS_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb.data import Condition
from scvi_perturb.generative import SamplerConfig
from scvi_perturb.model._carried import Carried, Output, carried_adata
from scvi_perturb.model._causal_draw import CausalDraw, Latents
from scvi_perturb.model._latents import chosen_rows, encode_cells
from scvi_perturb.model._screen import Screen
from scvi_perturb.module import ConditionTensors, state_divergence

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb.data import ScreenReader
    from scvi_perturb.module import CountParameters

__all__ = ["CausalGiven", "GivenCells"]


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
