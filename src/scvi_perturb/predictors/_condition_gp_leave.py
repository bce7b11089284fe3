"""What is left out together when the Gaussian process is tuned."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._requests import Request

__all__ = ["LEAVES", "Leave", "groups_of", "sensible_leave"]

#: "row": a condition in a context; "condition": a condition in all contexts; "perturbation": a set
#: of names, with all its doses, kinds, times and contexts; "context": all that was seen in it.
Leave = Literal["auto", "row", "condition", "perturbation", "context"]

LEAVES = ("auto", "row", "condition", "perturbation", "context")

_KEYS: dict[str, Callable[[Request], Any]] = {
    "row": lambda row: row,
    "condition": lambda row: row.condition,
    "perturbation": lambda row: tuple(sorted(set(row.condition.names))),
    "context": lambda row: row.context,
}


def groups_of(rows: Sequence[Request], leave: Leave) -> list[NDArray[np.intp]]:
    """Return the rows of each group that is left out together, in the order of first rows."""
    found: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(_KEYS[leave](row), []).append(i)
    return [np.array(members) for members in found.values()]


def sensible_leave(rows: Sequence[Request], *, has_features: bool) -> Leave:
    """Return what to leave out, by the question that such data are most likely to be asked.

    "context", where every condition was seen in two contexts or more and there are no more
    conditions than contexts; else "perturbation", if there are features to predict one from; else
    "condition", if combinations or doses relate conditions to each other; else "row".
    """
    conditions = {row.condition for row in rows}
    contexts = {row.context for row in rows}
    if len(rows) >= 2 * len(conditions) and 1 < len(contexts) >= len(conditions):
        seen = groups_of(rows, "condition")
        if min(map(len, seen)) >= 2:
            return "context"
    if has_features:
        return "perturbation"
    if len({part.name for c in conditions for part in c.components}) < len(conditions):
        return "condition"
    return "row"
