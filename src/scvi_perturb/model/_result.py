"""What comes back: AnnData with its units and its provenance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._version import __version__

if TYPE_CHECKING:
    from scipy import sparse

    from scvi_perturb.generative import SamplerConfig
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
    from scvi_perturb.model._screen import Screen

__all__ = ["Plan", "cells_adata", "provenance"]


@dataclass(frozen=True, slots=True)
class Plan:
    """Which cells are to be drawn: one entry a cell, grouped by row of the request.

    Attributes
    ----------
    row
        Row of the request, `(n_cells,)`.
    reference
        Row of the reference cell that it starts from, `(n_cells,)`.
    draw
        Number of the draw within its row, `(n_cells,)`.
    """

    row: np.ndarray
    reference: np.ndarray
    draw: np.ndarray

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.row)

    @classmethod
    def make(
        cls, request: Request, reference: Reference, n_samples: int | None, seed: int | None
    ) -> Plan:
        """Choose reference cells for every row.

        Each row draws `n_samples` of the control cells in its context: all of them, as often
        as whole rounds fit, and a random choice of them for the rest, so that cells are as
        evenly used as can be. None takes every control cell once.
        """
        if n_samples is not None and n_samples < 1:
            msg = (
                f"n_samples={n_samples} must be at least 1, or None for one cell a reference cell."
            )
            raise ValueError(msg)
        random = np.random.default_rng(seed)
        rows, cells, draws = [], [], []
        for i in range(len(request)):
            pool = reference.rows_for(request, i)
            n = len(pool) if n_samples is None else n_samples
            rounds = [random.permutation(pool) for _ in range(-(-n // len(pool)))]
            chosen = np.concatenate([np.sort(pool)] if n_samples is None else rounds)[:n]
            rows.append(np.full(n, i))
            cells.append(chosen)
            draws.append(np.arange(n))
        return cls(*(np.concatenate(part).astype(np.int64) for part in (rows, cells, draws)))


def cell_obs(plan: Plan, request: Request, reference: Reference, screen: Screen) -> pd.DataFrame:
    """Return `obs` of drawn cells: the condition's columns, the reference cell, the draw."""
    frame = condition_frame(request, screen)
    obs = frame.iloc[plan.row].reset_index(drop=True)
    for column in reference.labels:
        own = reference.labels[column].to_numpy()[plan.reference]
        obs[column] = obs[column].where(obs[column].notna(), own) if column in obs else own
    for column in obs:
        if obs[column].dtype == object:
            obs[column] = obs[column].astype("category")
    obs["reference_cell"] = reference.labels.index.astype(str).to_numpy()[plan.reference]
    obs["draw"] = plan.draw
    obs.index = pd.Index([f"row{r}_draw{d}" for r, d in zip(plan.row, plan.draw, strict=True)])
    return obs


def condition_frame(request: Request, screen: Screen) -> pd.DataFrame:
    """Return the rows of a request under the names that the screen was registered with.

    A context or batch that a row leaves to the reference is None.
    """
    text = screen.table.frame(request.conditions)
    keys = screen.keys
    frame = pd.DataFrame({keys.perturbation: text["perturbation"]})
    for column, name in (
        (keys.dose, "dose"),
        (keys.time, "time"),
        (keys.kind, "perturbation_type"),
    ):
        if column is not None:
            frame[column] = text[name]
    for column, labels in request.context.items():
        frame[column] = [label or None for label in labels]
    if request.batch is not None and screen.batch_column is not None:
        frame[screen.batch_column] = [label or None for label in request.batch]
    return frame


def cells_adata(
    matrix: sparse.csr_matrix | np.ndarray, obs: pd.DataFrame, screen: Screen
) -> AnnData:
    """Return drawn cells as AnnData, genes in the order of training."""
    return AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=pd.Index(screen.genes)))


def provenance(
    model: str,
    *,
    units: str,
    seed: int | None,
    sampler: SamplerConfig,
    library_size: str,
    trained_on: dict[str, Any],
) -> dict[str, dict[str, Any]]:
    """Return `uns` of a result: who made it, of what, in which units, and how."""
    evaluations = sampler.n_evaluations * (1 if sampler.guidance_scale == 1.0 else 2)
    return {
        UNS_KEY: {
            "model": model,
            "version": __version__,
            "scvi_tools_version": scvi.__version__,
            "torch_version": str(torch.__version__),
            "seed": "none" if seed is None else int(seed),
            "units": units,
            "sampler": sampler.method,
            "guidance_scale": float(sampler.guidance_scale),
            "n_function_evaluations": int(evaluations),
            "library_size": library_size,
            "trained_on": trained_on,
        }
    }
