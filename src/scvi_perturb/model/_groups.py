"""Cells of a plan that share a condition and a context: what has one mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from scvi_perturb.predictors._requests import Request as MeanRequest

if TYPE_CHECKING:
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
    from scvi_perturb.model._result import Plan
    from scvi_perturb.model._screen import Screen
    from scvi_perturb.predictors._requests import Context

__all__ = ["Groups"]


@dataclass(frozen=True, slots=True)
class Groups:
    """Groups of the entries of a plan.

    Attributes
    ----------
    of
        Group of each entry, `(n_cells,)`.
    row
        Row of the request of each group, `(n_groups,)`, rising.
    requests
        Condition and context of each group, as predictors of means are asked.
    pool
        All reference cells that each group could start from.
    """

    of: np.ndarray
    row: np.ndarray
    requests: list[MeanRequest]
    pool: list[np.ndarray]

    @classmethod
    def make(cls, plan: Plan, request: Request, cells: Reference, screen: Screen) -> Self:
        """Group entries by row and by the context of the cell that they start from.

        A context that a row asks for by name comes before that of its reference cells.
        """
        labels = cells.labels.reindex(columns=list(screen.context_columns)).to_numpy(dtype=object)
        labels[pd.isna(labels)] = None
        own, code = _distinct(labels)
        pairs, of = np.unique(
            np.stack([plan.row, code[plan.reference]], axis=1), axis=0, return_inverse=True
        )
        requests = [
            MeanRequest(request.conditions[row], _context(own[i], request.where(row), screen))
            for row, i in pairs
        ]
        every = {row: cells.rows_for(request, row) for row in range(len(request))}
        pool = [every[row][code[every[row]] == i] for row, i in pairs]
        return cls(of.ravel(), pairs[:, 0], requests, pool)

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.row)

    def pilot(self, plan: Plan, n_cells: int) -> tuple[Plan, np.ndarray]:
        """Return a plan of about `n_cells` of each group, and the group of its entries.

        Fewer entries are taken several times, so that each starts anew from its reference cell.
        """
        order = np.argsort(self.of, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(self.of[order])) + 1)
        chosen = np.concatenate([np.resize(part, n_cells) for part in parts])
        some = type(plan)(plan.row[chosen], plan.reference[chosen], plan.draw[chosen])
        return some, self.of[chosen]


def _distinct(labels: np.ndarray) -> tuple[list[Context], np.ndarray]:
    """Return the distinct rows of labels, and which of them each row is."""
    rows = [tuple(row) for row in labels]
    place = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    return list(place), np.array([place[row] for row in rows], dtype=np.int64)


def _context(own: Context, asked: dict[str, str], screen: Screen) -> Context:
    return tuple(
        asked.get(column, label) for column, label in zip(screen.context_columns, own, strict=True)
    )
