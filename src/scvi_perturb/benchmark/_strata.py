"""Conditions grouped by how much they change, or by how far they are from training."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import pandas as pd

from scvi_perturb._errors import check_choice

if TYPE_CHECKING:
    from typing import TypeAlias

    Stratum: TypeAlias = Literal[
        "effect", "agreement", "n_cells", "n_seen", "feature_distance", "context_distance"
    ]

__all__ = ["CLEAR", "strata_of"]

#: Agreement of two halves of a condition's cells from which its effect counts as clear.
CLEAR: Final = 0.5
UNKNOWN: Final = "unknown"
_LEGAL = ("effect", "agreement", "n_cells", "n_seen", "feature_distance", "context_distance")


def strata_of(frame: pd.DataFrame, by: Stratum, n: int) -> pd.Series[str]:
    """Return the stratum of each row of a table of scores of one task.

    Raises
    ------
    ValueError
        If `by` is not known or `n` is below 1.
    """
    check_choice("by", by, _LEGAL)
    if n < 1:
        msg = f"n={n}; ask for at least one stratum."
        raise ValueError(msg)
    values = frame.groupby("condition")[by].mean()
    known = values.dropna()
    distinct = np.unique(known)
    if len(distinct) <= n:
        named = {value: f"{by} {value:.3g}" for value in distinct}
        strata = values.map(named)
    else:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, n + 1)))
        place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        names = [f"{by} {low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
        strata = pd.Series([names[i] for i in place], index=values.index).where(values.notna())
    return frame["condition"].map(strata.fillna(UNKNOWN))
