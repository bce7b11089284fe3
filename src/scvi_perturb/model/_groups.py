"""Cells of a plan that share a condition and a context: what has one mean."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd

from scvi_perturb.model._result import Plan
from scvi_perturb.predictors._requests import Request as MeanRequest

if TYPE_CHECKING:
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
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
        Reference cells of the context of each group, which it starts from.
    control
        Those of them whose mean it changes: the ones in the batch asked for, where there are any.
    """

    of: np.ndarray
    row: np.ndarray
    requests: list[MeanRequest]
    pool: list[np.ndarray]
    control: list[np.ndarray]

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
        pools = [np.flatnonzero(code == i) for i in range(len(own))]
        batch = [""] * len(request) if request.batch is None else request.batch
        keys = [(int(i), batch[row]) for row, i in pairs]
        controls = {
            (i, label): _of_batch(pools[i], label, cells, screen)
            for i, label in dict.fromkeys(keys)
        }
        return cls(
            of.ravel(),
            pairs[:, 0],
            requests,
            [pools[i] for i, _ in keys],
            [controls[key] for key in keys],
        )

    def __len__(self) -> int:
        """Return the number of groups."""
        return len(self.row)

    def pilot(self, n_cells: int, seed: int | None) -> tuple[Plan, np.ndarray]:
        """Return a plan of `n_cells` of each group, and the group of its entries.

        They start from the pool, whatever was drawn of it: what a group's mean is may not depend on
        how many cells are asked for.
        """
        random = np.random.default_rng(seed)
        cells = [np.resize(random.permutation(pool), n_cells) for pool in self.pool]
        of = np.repeat(np.arange(len(self)), n_cells)
        return Plan(self.row[of], np.concatenate(cells), np.tile(np.arange(n_cells), len(self))), of


def _distinct(labels: np.ndarray) -> tuple[list[Context], np.ndarray]:
    """Return the distinct rows of labels, and which of them each row is."""
    rows = [tuple(row) for row in labels]
    place = {row: i for i, row in enumerate(dict.fromkeys(rows))}
    return list(place), np.array([place[row] for row in rows], dtype=np.int64)


def _context(own: Context, asked: dict[str, str], screen: Screen) -> Context:
    return tuple(
        asked.get(column, label) for column, label in zip(screen.context_columns, own, strict=True)
    )


def _of_batch(pool: np.ndarray, label: str, cells: Reference, screen: Screen) -> np.ndarray:
    """Return the cells of a pool in a batch; all of them where none is, or none was asked for."""
    if not label or screen.batch_column not in cells.labels:
        return pool
    own = pool[cells.labels[screen.batch_column].to_numpy()[pool] == label]
    return own if len(own) else pool
