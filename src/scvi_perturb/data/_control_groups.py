"""Cells grouped by context and batch, with the control cells that answer each group."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["LEVELS", "ControlGroups", "as_codes", "group_controls"]

#: What a group's controls share with its cells; a level is a position in this tuple.
LEVELS: Final = ("context and batch", "context", "nothing")


@dataclass(frozen=True, slots=True)
class ControlGroups:
    """Cells grouped by context and batch, with the control cells that answer each group.

    Attributes
    ----------
    group
        `(n_cells,)` group of each cell.
    level
        `(n_groups,)` position in `LEVELS`: how closely the group's controls match.
    controls
        `(n_controls,)` positions of all control cells, ordered so that the controls of a group
        are `controls[start[group]:stop[group]]`.
    start, stop
        `(n_groups,)`.
    """

    group: NDArray[np.int64]
    level: NDArray[np.int64]
    controls: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    @property
    def cell_level(self) -> NDArray[np.int64]:
        """`(n_cells,)` level at which each cell is answered."""
        return self.level[self.group]

    def pool(self, group: int) -> NDArray[np.int64]:
        """Return the positions of the control cells that answer a group."""
        return self.controls[self.start[group] : self.stop[group]]


def group_controls(
    context: ArrayLike, batch: ArrayLike | None, is_control: ArrayLike
) -> ControlGroups:
    """Find the control cells that answer each cell.

    They share the cell's context and batch; where there are none, its context; where there are
    none either, they are all controls. `level` tells which.

    Parameters
    ----------
    context
        `(n_cells,)` or, for several columns, `(n_cells, n_columns)`: codes or labels.
    batch
        `(n_cells,)` codes or labels, or None for a single batch.
    is_control
        `(n_cells,)` of bool.

    Raises
    ------
    SchemaError
        If lengths differ or there is no control cell.
    """
    control = np.asarray(is_control, dtype=bool)
    if not control.any():
        msg = (
            f"None of {len(control)} cells is a control; expected at least one. Name the control "
            "label with `control=`, or add control cells."
        )
        raise SchemaError(msg)
    contexts = as_codes(context, len(control), "context")
    batches = as_codes(np.zeros(len(control)) if batch is None else batch, len(control), "batch")
    pair = contexts * (batches.max() + 1) + batches
    distinct, group = np.unique(pair, return_inverse=True)
    in_pair, context_of = pair[control], distinct // (batches.max() + 1)
    order = np.argsort(in_pair, kind="stable")
    in_pair, in_context = in_pair[order], contexts[control][order]
    bounds = np.stack(
        [
            _interval(in_pair, distinct),
            _interval(in_context, context_of),
            np.broadcast_to([[0], [len(order)]], (2, len(distinct))),
        ]
    )
    level = (bounds[:, 1] > bounds[:, 0]).argmax(axis=0)
    start, stop = bounds[level, :, np.arange(len(distinct))].T
    controls = np.flatnonzero(control)[order]
    return ControlGroups(
        group.astype(np.int64), level, controls, start.astype(np.int64), stop.astype(np.int64)
    )


def as_codes(values: ArrayLike, n_cells: int, name: str) -> NDArray[np.int64]:
    """Return one dense code a cell for labels in one or several columns."""
    columns = np.asarray(values)
    if columns.shape[:1] != (n_cells,):
        msg = f"{name} has shape {columns.shape}; expected {n_cells} rows, as is_control has."
        raise SchemaError(msg)
    codes = np.zeros(n_cells, np.int64)
    for column in columns.reshape(n_cells, -1).T:
        own, labels = pd.factorize(column, use_na_sentinel=False)
        codes, _ = pd.factorize(codes * len(labels) + own)
    return codes.astype(np.int64)


def _interval(ordered: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each value begins and ends in an ordered array, `(2, n_values)`."""
    sides = [np.searchsorted(ordered, values, side=side) for side in ("left", "right")]
    return np.stack(sides).astype(np.int64)
