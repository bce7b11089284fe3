"""Requests of a user, the conditions of their rows, and what is new of them beside training."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Self, TypeAlias, TypeVar

import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import Column, SchemaError, shown
from scvi_perturb.data.condition import Component, Condition, as_labels, is_missing

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.screen import Screen

Value = TypeVar("Value", float, str)

#: Column of a request: how many cells are drawn of each row.
N_CELLS: Final = "n_cells"


#: A label for each context column; None, or an empty label, where none was given.
Context: TypeAlias = tuple[str | None, ...]


@dataclass(frozen=True, slots=True)
class RequestRow:
    """One condition in one context."""

    condition: Condition
    context: Context = ()


@checked
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


def without_n_cells(
    conditions: str | Sequence[str] | pd.DataFrame, keys: ScreenKeys
) -> tuple[str | Sequence[str] | pd.DataFrame, tuple[int, ...] | None]:
    """Return a request without its column `n_cells`, and the column if there is one.

    A context or batch of this name stays. Raises `SchemaError`: When a value is no whole number
    from 1 on.
    """
    if not isinstance(conditions, pd.DataFrame) or N_CELLS not in conditions:
        return conditions, None
    if N_CELLS in (*keys.obs_columns, keys.batch):
        return conditions, None
    values = pd.to_numeric(conditions[N_CELLS], errors="coerce")
    wrong = ~((values >= 1) & (values % 1 == 0))
    if wrong.any():
        msg = (
            f"The column {N_CELLS!r} of the request has {shown(conditions[N_CELLS][wrong].iloc[0])}"
            "; expected a whole number of cells from 1 on in each row."
        )
        raise SchemaError(msg)
    return conditions.drop(columns=N_CELLS), tuple(int(value) for value in values)


def parse_request(conditions: Sequence[str] | pd.DataFrame, screen: Screen) -> Request:
    """Read a request.

    `conditions`: Names (`"A"`, `"A+B"`, the control), or a table with a column of perturbations and
    where wanted doses, times, kinds, contexts and batch, under the names they were registered with
    or under `perturbation`, `dose`, `time`, `perturbation_type`. A missing context or batch is the
    reference's, a missing dose, time or kind the only one that the screen has. `screen`: What the
    model was set up with. Raises `SchemaError`: When the table has columns that mean nothing to the
    model, or none of perturbations; when a dose, time or kind is left out of which the screen has
    several.
    """
    frame = request_table(conditions, screen.keys)
    parsed = parse_conditions(frame, screen.keys, screen.table.conditions)
    columns = (*screen.keys.context, *filter(None, [screen.keys.batch]))
    labels = {c: tuple(as_labels(frame[c], missing="")) for c in columns if c in frame}
    asked = {column: own for column, own in labels.items() if any(own)}
    batch = asked.pop(screen.keys.batch, None) if screen.keys.batch else None
    return Request(tuple(parsed), asked, batch)


def request_table(conditions: str | Iterable[str] | pd.DataFrame, keys: ScreenKeys) -> pd.DataFrame:
    """Return a request as a table; models and predictors read the same one.

    `conditions`: A name, names, or a table. Columns of the condition may have the names of `keys`,
    or `perturbation`, `dose`, `time`, `perturbation_type`. `keys`: Columns that mean something:
    those of the condition, the context and the batch. Raises `SchemaError`: When nothing is asked,
    there is no column of perturbations, or a column would be ignored.
    """
    if isinstance(conditions, str):
        conditions = [conditions]
    if not isinstance(conditions, pd.DataFrame):
        conditions = pd.DataFrame({keys.perturbation: list(conditions)}, dtype=object)
    if not len(conditions):
        msg = "The request is empty; name at least one condition."
        raise SchemaError(msg)
    roles = {
        Column.PERTURBATION: keys.perturbation,
        Column.DOSE: keys.dose,
        Column.TIME: keys.time,
        Column.KIND: keys.kind,
    }
    renamed = {
        name: column
        for name, column in roles.items()
        if column and name in conditions and column not in conditions
    }
    table = conditions.rename(columns=renamed)
    known = {*filter(None, (*roles.values(), *keys.context, keys.batch))}
    unknown = [str(c) for c in table.columns if c not in known]
    if unknown:
        msg = (
            f"The request has columns {sorted(unknown)}, which were not registered and would "
            f"change nothing; known are {sorted(known)}. Drop them, or name them at setup."
        )
        raise SchemaError(msg)
    if keys.perturbation not in table:
        names = " or ".join(map(repr, dict.fromkeys((keys.perturbation, Column.PERTURBATION))))
        msg = f"The request needs a column {names}; it has {sorted(table.columns)}."
        raise SchemaError(msg)
    return table


def parse_conditions(
    table: pd.DataFrame, keys: ScreenKeys, known: Iterable[Condition]
) -> list[Condition]:
    """Return the condition of each row of a request; models and predictors read it alike.

    A dose, time or kind that a row leaves out is the only one that the screen has: doses and kinds
    of the same perturbation, or of all where it was not measured; times of all perturbations. Where
    the screen has several, the row is refused.

    `table`: As of `request_table`. `keys`: Columns of the condition. `known`: Conditions of the
    screen, those that a split holds out included. Raises `SchemaError`: When a row names no
    perturbation, leaves out what has several values, or cannot be parsed.
    """
    known = tuple(known)
    by_name: dict[str | None, _Values] = {None: _Values(set(), set())}  # None: of all names
    for part in {part for condition in known for part in condition.components}:
        for name in (part.name, None):
            values = by_name.setdefault(name, _Values(set(), set()))
            values.doses.add(part.dose)
            values.kinds.add(part.kind)
    times = {condition.time for condition in known if condition.time is not None}
    parsed = []
    for row in table.to_dict(orient="records"):
        named = {role: row[c] for role, c in keys.columns.items() if c in row}
        given = {role: value for role, value in named.items() if not is_missing(value)}
        if "perturbation" not in given:
            msg = f"A row of the request has no {keys.perturbation!r}: {shown(row)}."
            raise SchemaError(msg)
        condition = keys.parse(**given)
        if not condition.is_control:
            parts = [
                _completed(part, given, keys, by_name.get(part.name, by_name[None]))
                for part in condition.components
            ]
            time = condition.time
            if keys.time is not None and time is None and times:
                time = _only(times, "time", "the perturbations", keys.time)
            condition = Condition(tuple(parts), time=time)
        parsed.append(condition)
    return parsed


class _Values(NamedTuple):
    """Doses and kinds that a screen has."""

    doses: set[float]
    kinds: set[str]


def _completed(
    part: Component, given: Mapping[str, object], keys: ScreenKeys, known: _Values
) -> Component:
    """Fill in dose and kind of a component from those that are known, where there is one choice."""
    kind, dose = part.kind, part.dose
    if keys.kind is not None and "kind" not in given and known.kinds:
        kind = _only(known.kinds, "kind", part.name, keys.kind)
    if keys.dose is not None and "dose" not in given:
        dose = _only(known.doses, "dose", part.name, keys.dose)
    return Component(part.name, dose=dose, kind=kind)


def _only(values: set[Value], what: str, name: str, column: str) -> Value:
    """Return the single value, or raise that it must be given."""
    if len(values) == 1:
        return next(iter(values))
    some = f" ({', '.join(map(str, sorted(values)[:8]))})" if values else ""
    msg = (
        f"The {what} of {name!r} must be given: the screen has {len(values)}{some}. Ask with a "
        f"DataFrame that has a column {column!r}."
    )
    raise SchemaError(msg)


#: "seen": measured in that context; "unseen_context": elsewhere, and nothing was measured there;
#: "context_transfer": elsewhere, and other perturbations there; "unseen_combination": only its
#: components; "dose": the same names at doses or times on both sides; "dose_beyond": on one side
#: only; "unseen_perturbation": a name that is new.
RequestScenario = Literal[
    "seen",
    "unseen_context",
    "context_transfer",
    "unseen_combination",
    "dose",
    "dose_beyond",
    "unseen_perturbation",
]


def agrees(asked: Context, own: Context) -> bool:
    """Whether a context is what was asked for, where something was said."""
    return all(a is None or a == b for a, b in zip(asked, own, strict=True))


@dataclass(frozen=True, slots=True)
class TrainingCoverage:
    """What training holds, as far as scenarios depend on it.

    `rows`, `contexts`, `conditions`: Treated rows (condition in context), their contexts, their
    conditions. `components`: All components, at their doses. `together`: Names of each condition.
    `doses`: Lowest and highest dose of each name and kind. `times`: Lowest and highest time, if any
    is known.
    """

    rows: frozenset[RequestRow]
    contexts: frozenset[Context]
    conditions: frozenset[Condition]
    components: frozenset[Component]
    together: frozenset[frozenset[str]]
    doses: dict[tuple[str, str], tuple[float, float]]
    times: tuple[float, float] | None

    @classmethod
    def of(cls, rows: Iterable[RequestRow]) -> Self:
        """Gather what treated training rows hold."""
        rows = frozenset(rows)
        components = frozenset(part for row in rows for part in row.condition.components)
        doses: dict[tuple[str, str], tuple[float, float]] = {}
        for part in components:
            low, high = doses.get((part.name, part.kind), (part.dose, part.dose))
            doses[part.name, part.kind] = min(low, part.dose), max(high, part.dose)
        conditions = frozenset(row.condition for row in rows)
        times = [one.time for one in conditions if one.time is not None]
        return cls(
            rows,
            frozenset(row.context for row in rows),
            conditions,
            components,
            frozenset(frozenset(one.names) for one in conditions),
            doses,
            (min(times), max(times)) if times else None,
        )

    def scenario(self, request: RequestRow) -> RequestScenario:
        """Return what a request that is no control asks.

        What its context leaves open is taken for what was seen.
        """
        parts = request.condition.components
        if any((part.name, part.kind) not in self.doses for part in parts):
            return "unseen_perturbation"
        if request.condition in self.conditions:
            here = self._agreeing(request.context)
            if any(replace(request, context=own) in self.rows for own in here):
                return "seen"
            return "context_transfer" if here else "unseen_context"
        if len(parts) > 1 and all(part in self.components for part in parts):
            return "unseen_combination"
        ranges = [(part.dose, *self.doses[part.name, part.kind]) for part in parts]
        inside = all(low <= dose <= high for dose, low, high in ranges)
        return "dose" if inside else "dose_beyond"

    def _agreeing(self, context: Context) -> list[Context]:
        if None not in context:
            return [context] if context in self.contexts else []
        return [own for own in self.contexts if agrees(context, own)]

    def regime(self, request: RequestRow) -> str:
        """Return which parts of a request are new, such as "seen perturbation, new context".

        A perturbation is "seen", "featured" (known by its features alone), or a "new combination"
        of seen ones. A context is seen where something but control was measured in it. Doses and
        times beyond those of training are told; those within are not.
        """
        parts = request.condition.components
        if not parts:
            return "control"
        ranges = [self.doses.get((part.name, part.kind)) for part in parts]
        what = "seen perturbation"
        if None in ranges:
            what = "featured perturbation"
        elif frozenset(request.condition.names) not in self.together and len(parts) > 1:
            what = "new combination"
        where = "seen" if self._agreeing(request.context) else "new"
        doses = [(part.dose, own) for part, own in zip(parts, ranges, strict=True) if own]
        beyond = [] if all(low <= dose <= high for dose, (low, high) in doses) else ["dose outside"]
        time = request.condition.time
        if time is not None and self.times and not self.times[0] <= time <= self.times[1]:
            beyond.append("time outside")
        return ", ".join([what, f"{where} context", *beyond])
