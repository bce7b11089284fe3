"""Rows of metadata that cells are asked for by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.data import Condition
from scvi_perturb.data._keys import as_labels
from scvi_perturb.model._request import parse_request

if TYPE_CHECKING:
    from scvi_perturb.model._screen import Screen

__all__ = ["MetadataRows", "parse_rows"]


@dataclass(frozen=True, slots=True)
class MetadataRows:
    """Metadata asked for, one row a population.

    Attributes
    ----------
    conditions
        Condition of each row, control where none is asked.
    fields
        Column of metadata -> codes of labels, -1 where missing, or numbers with NaN, `(n,)`.
    batch
        Code of the batch, -1 where missing, `(n,)`.
    frame
        The rows under the names they were registered with.
    """

    conditions: tuple[Condition, ...]
    fields: dict[str, np.ndarray]
    batch: np.ndarray
    frame: pd.DataFrame

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.conditions)


def parse_rows(table: pd.DataFrame, screen: Screen) -> MetadataRows:
    """Read rows of metadata; what is missing is marked as such.

    Raises
    ------
    SchemaError
        For no row, a column that the model does not know, or a label that it never met.
    """
    levels: dict[str, tuple[str, ...] | None] = {
        column: tuple(sorted({row[i] for row in screen.contexts}))
        for i, column in enumerate(screen.context_columns)
    }
    if screen.batch_column is not None:
        levels[screen.batch_column] = tuple(sorted({row[0] for row in screen.batches}))
    levels |= {column.name: column.levels for column in screen.metadata}
    of_conditions = {*screen.keys.columns.values(), "perturbation", "dose", "time"}
    of_conditions = of_conditions if screen.is_perturbed else set()
    known = {*levels, *of_conditions}
    wrong = sorted(set(map(str, table.columns)) - known)
    if wrong or len(table) == 0:
        found = f"columns {wrong}" if wrong else "no row"
        msg = f"The metadata have {found}; expected rows with columns among {sorted(known)}."
        raise SchemaError(msg)
    frame = table.reset_index(drop=True)
    fields = {name: _values(frame, name, own) for name, own in levels.items()}
    batch = np.full(len(frame), -1, dtype=np.int64)
    if screen.batch_column is not None:
        codes = {row[0]: code for code, row in enumerate(screen.batches)}
        own = levels[screen.batch_column] or ()
        place = fields[screen.batch_column]
        batch = np.array([codes[own[p]] if p >= 0 else -1 for p in place], dtype=np.int64)
    return MetadataRows(_conditions(frame, of_conditions, screen), fields, batch, frame)


def _values(frame: pd.DataFrame, name: str, levels: tuple[str, ...] | None) -> np.ndarray:
    """Return codes or numbers of a column, all missing where it is not there."""
    if levels is None:
        if name not in frame:
            return np.full(len(frame), np.nan, dtype=np.float32)
        return np.asarray(pd.to_numeric(frame[name]), dtype=np.float32)
    if name not in frame:
        return np.full(len(frame), -1, dtype=np.int64)
    labels = as_labels(frame[name], missing="")
    place = {level: i for i, level in enumerate(levels)} | {"": -1}
    unknown = sorted(set(labels) - set(place))
    if unknown:
        msg = f"{name} {unknown} was never met; the model knows {list(levels)[:20]}."
        raise SchemaError(msg)
    return np.array([place[label] for label in labels], dtype=np.int64)


def _conditions(frame: pd.DataFrame, columns: set[str], screen: Screen) -> tuple[Condition, ...]:
    key = screen.keys.perturbation
    own = frame[[c for c in frame.columns if c in columns]]
    named = key if key in own else "perturbation"
    if named not in own:
        return tuple(Condition() for _ in range(len(frame)))
    own = own.assign(**{named: own[named].fillna(screen.table.control)})
    return parse_request(own, screen).conditions
