"""What is asked of a model: a list of names or a table of conditions, made precise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.data import Component, Condition
from scvi_perturb.data._keys import as_labels
from scvi_perturb.data._request_table import request_table

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scvi_perturb.model._screen import Screen

__all__ = ["Request", "parse_request"]

Value = TypeVar("Value", float, str)


@dataclass(frozen=True, slots=True)
class Request:
    """A request: one row a population of cells to predict.

    Attributes
    ----------
    conditions
        Condition of each row.
    context
        Labels asked for, column -> one label a row, "" for the reference's; columns that no row
        asks for are absent.
    batch
        Batch asked for, one label a row, "" for the reference's; None where no row asks.
    """

    conditions: tuple[Condition, ...]
    context: dict[str, tuple[str, ...]]
    batch: tuple[str, ...] | None

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.conditions)

    def where(self, row: int) -> dict[str, str]:
        """Return the context that a row asks for."""
        return {column: labels[row] for column, labels in self.context.items() if labels[row]}


def parse_request(conditions: Sequence[str] | pd.DataFrame, screen: Screen) -> Request:
    """Read a request.

    Parameters
    ----------
    conditions
        Names (`"A"`, `"A+B"`, the control), or a table with a column of perturbations and where
        wanted doses, times, kinds, contexts and batch, under the names they were registered with
        or under `perturbation`, `dose`, `time`, `perturbation_type`. A missing context or batch
        is the reference's.
    screen
        What the model was set up with.

    Raises
    ------
    SchemaError
        When the table has columns that mean nothing to the model, or none of perturbations; when
        a dose, time or kind is needed and not given.
    """
    others = [c for c in (*screen.context_columns, screen.batch_column) if c is not None]
    frame = request_table(conditions, screen.keys, others)
    parsed = tuple(_complete(row, screen) for row in frame.to_dict(orient="records"))
    asked = {c: _asked(frame, c) for c in screen.context_columns}
    return Request(
        conditions=parsed,
        context={column: labels for column, labels in asked.items() if labels is not None},
        batch=None if screen.batch_column is None else _asked(frame, screen.batch_column),
    )


def _asked(frame: pd.DataFrame, column: str) -> tuple[str, ...] | None:
    """Return the labels of a column, "" where there is none; None where no row has one."""
    labels = tuple(as_labels(frame[column], missing="")) if column in frame else ()
    return labels if any(labels) else None


def _complete(row: Mapping[Any, object], screen: Screen) -> Condition:
    """Parse one row; a dose, time or kind left out is filled in only if there is one choice."""
    keys = screen.keys
    given = {r: row[c] for r, c in keys.columns.items() if c in row and _there(row[c])}
    if "perturbation" not in given:
        msg = f"A row of the request has no {keys.perturbation!r}: {row}."
        raise SchemaError(msg)
    condition = keys.parse(**given)
    if condition.is_control:
        return condition
    parts = [
        part if "dose" in given and "kind" in given else _fill(part, given, screen)
        for part in condition.components
    ]
    time = condition.time
    recorded = {c.time for c in screen.table.conditions if c.time is not None}
    if keys.time is not None and time is None and recorded:
        time = _only(recorded, "time", "the perturbations", keys.time)
    return Condition(tuple(parts), time=time)


def _there(value: Any) -> bool:  # noqa: ANN401
    return not pd.isna(value) and str(value).strip() != ""


def _fill(part: Component, given: dict[str, object], screen: Screen) -> Component:
    """Fill in dose and kind of a component from the screen, where it has one value only."""
    known = [p for c in screen.table.conditions for p in c.components]
    own = [p for p in known if p.name == part.name] or known
    kind, dose = part.kind, part.dose
    if screen.keys.kind is not None and "kind" not in given:
        kind = _only({p.kind for p in own}, "kind", part.name, screen.keys.kind)
    if screen.keys.dose is not None and "dose" not in given:
        dose = _only({p.dose for p in own}, "dose", part.name, screen.keys.dose)
    return Component(part.name, dose=dose, kind=kind)


def _only(values: set[Value], what: str, name: str, column: str) -> Value:
    """Return the single value, or raise that it must be given."""
    if len(values) == 1:
        return next(iter(values))
    some = ", ".join(map(str, sorted(values)[:8]))
    msg = (
        f"The {what} of {name!r} must be given: the screen has {len(values)} ({some}). Ask with a "
        f"DataFrame that has a column {column!r}."
    )
    raise SchemaError(msg)
