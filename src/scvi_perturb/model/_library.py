"""How perturbations change the size of a cell's library, learnt from the training cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY
from scvi_perturb.data import group_controls

if TYPE_CHECKING:
    from scvi_perturb.data import Condition, ConditionTable

__all__ = ["library_shift", "library_shifts"]


def library_shifts(
    codes: dict[str, np.ndarray], library: np.ndarray, train: np.ndarray
) -> dict[int, float]:
    """Return the mean change of the log library size under each trained condition.

    Changes are taken against controls of the same context and batch, averaged over contexts,
    and shrunk towards none as far as their standard error is large (positive-part James-Stein).

    Parameters
    ----------
    codes
        Condition, context and batch of all cells.
    library
        Library sizes of all cells.
    train
        Cells to learn from.
    """
    condition, context = codes[CONDITION_KEY][train], codes[CONTEXT_KEY][train]
    size = np.log(np.maximum(library[train].astype(float), 1.0))
    groups = group_controls(context, codes[BATCH_KEY][train], condition == 0)
    centre = np.array([size[groups.pool(g)].mean() for g in range(len(groups.start))])
    change = size - centre[groups.group]
    shifts = {}
    for code in np.unique(condition[condition != 0]):
        own = condition == code
        means, variances = [], []
        for place in np.unique(context[own]):
            there = change[own & (context == place)]
            spread = size[context == place].var()
            means.append(there.mean())
            variances.append(spread / len(there))
        shift = float(np.mean(means))
        error = float(np.sum(variances)) / len(means) ** 2
        shifts[int(code)] = shift * max(0.0, 1.0 - error / shift**2) if shift else 0.0
    return shifts


def library_shift(condition: Condition, shifts: dict[int, float], table: ConditionTable) -> float:
    """Return the change of the log library size expected under a condition.

    A trained condition has its own; another is the sum over its components, each the mean of
    the trained conditions of that component alone; what was never seen alone changes nothing.
    """
    if condition.is_control:
        return 0.0
    known = {table.conditions[code]: shift for code, shift in shifts.items()}
    if condition in known:
        return known[condition]
    total = 0.0
    for part in condition.components:
        alone = [
            shift
            for other, shift in known.items()
            if [(p.name, p.kind) for p in other.components] == [(part.name, part.kind)]
        ]
        total += float(np.mean(alone)) if alone else 0.0
    return total
