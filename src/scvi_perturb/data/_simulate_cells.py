"""Annotated cells of a simulated screen: what was done to each, and what was counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_perturb._constants import DOSE_COLUMN, PERTURBATION_COLUMN, TIME_COLUMN
from scvi_perturb.data._simulate_factors import draw_counts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Condition
    from scvi_perturb.data._simulate_factors import Factors
    from scvi_perturb.data._simulate_truth import Truth

__all__ = ["Cells", "annotate", "perturb"]


@dataclass(frozen=True, slots=True)
class Cells:
    """What each cell of a screen is and what was done to it.

    Attributes
    ----------
    conditions
        The different conditions.
    condition, context, batch
        `(n_cells,)` positions in `conditions` and in the truth's contexts and batches.
    time
        `(n_cells,)`, or None where times are not recorded.
    """

    conditions: list[Condition]
    condition: NDArray[np.int64]
    context: NDArray[np.int64]
    batch: NDArray[np.int64]
    time: NDArray[np.float64] | None


def perturb(truth: Truth, cells: Cells, factors: Factors) -> Factors:
    """Return the factors with responding cells' states shifted by their conditions."""
    shifts = np.stack([truth.shift(condition) for condition in cells.conditions])
    shift = shifts[cells.condition, cells.context] * factors.responds[:, None]
    return replace(factors, state=factors.state + shift)


def annotate(truth: Truth, cells: Cells, factors: Factors, rng: np.random.Generator) -> AnnData:
    """Draw counts and write them with the cells' annotation and factors."""
    counts = draw_counts(truth, factors, rng)
    n_cells, n_genes = counts.shape
    perturbed = np.array([not condition.is_control for condition in cells.conditions])
    columns: dict[str, object] = {
        PERTURBATION_COLUMN: _labels([c.perturbation for c in cells.conditions], cells.condition)
    }
    if truth.config.doses is not None:
        columns[DOSE_COLUMN] = _labels([c.dose_label for c in cells.conditions], cells.condition)
    if cells.time is not None:
        columns[TIME_COLUMN] = cells.time
    columns["cell_type"] = _labels(truth.contexts, cells.context)
    columns["batch"] = _labels(truth.batches, cells.batch)
    columns["library_size"] = np.asarray(counts.sum(axis=1), dtype=np.float32).ravel()
    columns["truth_responder"] = factors.responds & perturbed[cells.condition]
    obs = pd.DataFrame(columns, index=[f"cell_{i}" for i in range(n_cells)])
    width = len(str(n_genes - 1))
    return AnnData(
        counts,
        obs=obs,
        var=pd.DataFrame(index=[f"gene_{i:0{width}d}" for i in range(n_genes)]),
        obsm={
            "truth_identity": factors.identity,
            "truth_state": factors.state,
            "truth_technical": factors.technical,
        },
    )


def _labels(names: object, codes: NDArray[np.int64]) -> pd.Categorical:
    """Return text labels of codes; different codes may have one label."""
    values, to_value = np.unique(np.asarray(names, dtype=str), return_inverse=True)
    return pd.Categorical.from_codes(to_value[codes], categories=pd.Index(values.astype(object)))
