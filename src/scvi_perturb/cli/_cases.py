"""What is asked and judged: one case a held-out condition in a context."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scvi_perturb.cli._hold_out import MIN_CELLS
from scvi_perturb.cli._options import UsageError
from scvi_perturb.data.keys import default_keys

if TYPE_CHECKING:
    from collections.abc import Collection

    from numpy.typing import NDArray

    from scvi_perturb.cli._screen import Screen
    from scvi_perturb.data.keys import ConditionKeys
    from scvi_perturb.data.split.record import Split

__all__ = ["Case", "cases"]

_MOST: Final = 30


@dataclass(frozen=True, slots=True)
class Case:
    """A held-out condition in a context.

    Attributes
    ----------
    title
        Name for tables and figures.
    request
        What to ask of a model: a table of one row.
    observed
        Held-out cells, `(n,)`.
    control
        Control cells of the same context that were trained on, `(m,)`.
    """

    title: str
    request: pd.DataFrame
    observed: NDArray[np.int64]
    control: NDArray[np.int64]


def cases(screen: Screen, split: Split) -> tuple[list[Case], str]:
    """Return the held-out conditions with enough cells, and a word on those left out.

    Raises
    ------
    UsageError
        When there is none.
    """
    obs, contexts = screen.adata.obs, list(screen.contexts)
    keys = default_keys(screen.adata)
    columns = [*keys.columns.values(), *contexts]
    is_control = (obs[keys.perturbation].astype(str) == keys.control).to_numpy()
    seen = np.zeros(len(obs), bool)
    seen[np.concatenate([split.train, split.validation])] = True
    treated = split.test[~is_control[split.test]]
    groups = obs.iloc[treated][columns].astype(object)
    varying = [c for c in columns if obs[c].nunique() > 1]
    found = []
    for _, members in groups.groupby(columns, dropna=False, sort=True).indices.items():
        rows = treated[members]
        request = groups.iloc[members[:1]].reset_index(drop=True)
        near = is_control & seen
        for key in contexts:
            near &= (obs[key] == request[key][0]).to_numpy()
        found.append(Case(_title(request, keys, varying), request, rows, np.flatnonzero(near)))
    enough = [c for c in found if min(len(c.observed), len(c.control)) >= MIN_CELLS]
    if not enough:
        msg = (
            f"No held-out condition has {MIN_CELLS} cells and as many controls of its context, so "
            "nothing can be judged; name others with --held-out, or fewer --context-keys."
        )
        raise UsageError(msg)
    enough.sort(key=lambda case: -len(case.observed))
    kept = sorted(enough[:_MOST], key=lambda case: case.title)
    left = len(found) - len(kept)
    note = (
        f"{left} of {len(found)} held-out conditions are not judged: fewer than {MIN_CELLS} cells "
        f"or controls, or past the {_MOST} with the most cells."
    )
    return kept, note if left else ""


def _title(request: pd.DataFrame, keys: ConditionKeys, varying: Collection[str]) -> str:
    """Return the perturbation, and of the rest what is not the same in all cells."""
    parts = []
    for column in request:
        value = request[column][0]
        if pd.isna(value) or column not in {keys.perturbation, *varying}:
            continue
        dose, hours = f"dose {value}", f"{value} h"
        parts.append(dose if column == keys.dose else hours if column == keys.time else str(value))
    return ", ".join(parts)
