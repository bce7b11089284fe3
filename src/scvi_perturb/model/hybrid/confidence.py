"""Means with their errors, of effects and of single cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._core import log_normalize_cells

if TYPE_CHECKING:
    from anndata import AnnData


@dataclass(frozen=True, slots=True)
class Confidence:
    """What is predicted of conditions, and how surely.

    Tables have a row a condition and a column a gene.

    `level`: Coverage of the intervals. `mean`, `std`, `lower`, `upper`: Effect level: the change of
    the mean profile from control (natural logarithm of counts per ten thousand plus one), the
    standard deviation of its error, and the interval that holds the true change with probability
    `level`, on average over genes. `cell_lower`, `cell_upper`: Cell level: the interval that holds
    the value of a new cell, `log1p` of counts per ten thousand of those that it has; None where no
    cells were asked for. `cells`: The sampled cells; None where none were asked for. `effects`: The
    answer of `predict`, with `obs`: conditions, novelty, support, scenario.
    """

    level: float
    mean: pd.DataFrame
    std: pd.DataFrame
    lower: pd.DataFrame
    upper: pd.DataFrame
    cell_lower: pd.DataFrame | None
    cell_upper: pd.DataFrame | None
    cells: AnnData | None
    effects: AnnData


def with_confidence(effects: AnnData, cells: AnnData | None, level: float) -> Confidence:
    """Gather effects and the quantiles of cells, which are those of the rows of `effects`."""

    def table(values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values, index=effects.obs_names, columns=effects.var_names)

    cell_lower = cell_upper = None
    if cells is not None:
        rows = [name.partition("_draw")[0] for name in cells.obs_names]
        found = np.zeros((2, *effects.shape))
        place = pd.Index(effects.obs_names).get_indexer(rows)
        counts = cells.uns["scvi_perturb"]["units"] == "counts"
        order = np.argsort(place, kind="stable")
        ends = np.searchsorted(place[order], np.arange(effects.n_obs + 1))
        for i in range(effects.n_obs):
            own = cells.X[order[ends[i] : ends[i + 1]]]
            values = log_normalize_cells(own).toarray() if counts else np.asarray(own)
            found[:, i] = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        cell_lower, cell_upper = table(found[0]), table(found[1])
    mean, std, lower, upper = (
        table(np.asarray(effects.layers[name])) for name in ("lfc", "std", "lower", "upper")
    )
    return Confidence(level, mean, std, lower, upper, cell_lower, cell_upper, cells, effects)
