"""A table of conditions: integer codes for cells, and the arrays behind each code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import CONTROL, SEPARATOR, SchemaError, UnknownPerturbationError
from scvi_perturb.data.condition import (
    Component,
    Condition,
    ScreenKeys,
    as_label,
    check_separator,
    distinct_rows,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray


class ConditionArrays(NamedTuple):
    """Conditions as arrays, one row each, padded to `m` components.

    Padding has component 0, dose 0 and mask False; a missing time is NaN.
    """

    component: NDArray[np.int64]
    """Component ids, `(n, m)`."""
    dose: NDArray[np.float32]
    """Doses, `(n, m)`."""
    mask: NDArray[np.bool_]
    """True where there is a component, `(n, m)`."""
    time: NDArray[np.float32]
    """Times, `(n,)`."""


@checked
@dataclass(frozen=True, slots=True)
class ConditionTable:
    """Integer codes for conditions and for components. It grows; codes and ids never change.

    Parameters
    ----------
    control, separator
        How labels are written and read.
    components
        Name and kind of each component; its place is its id.
    conditions
        All conditions; its place is its code. Code 0 is the control, and the only control.

    Raises
    ------
    SchemaError
        If code 0 is not the control, or something comes twice or is not in `components`.
    """

    control: str = CONTROL
    separator: str = SEPARATOR
    components: tuple[tuple[str, str], ...] = ()
    conditions: tuple[Condition, ...] = (Condition(),)
    _code: dict[Condition, int] = field(init=False, repr=False, compare=False)
    _id: dict[tuple[str, str], int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_separator(self.separator)
        object.__setattr__(self, "_code", {c: i for i, c in enumerate(self.conditions)})
        object.__setattr__(self, "_id", {c: i for i, c in enumerate(self.components)})
        if self.conditions[:1] != (Condition(),):
            msg = "The first condition of a table must be the control, `Condition()`."
            raise SchemaError(msg)
        if len(self._code) < len(self.conditions) or len(self._id) < len(self.components):
            msg = "A table holds a condition or a component twice; expected each once."
            raise SchemaError(msg)
        absent = {(p.name, p.kind) for c in self.conditions for p in c.components} - set(self._id)
        if absent:
            msg = f"Conditions use components that the table does not list: {sorted(absent)}."
            raise SchemaError(msg)

    @classmethod
    def from_conditions(
        cls,
        conditions: Iterable[Condition],
        *,
        control: object = CONTROL,
        separator: str = SEPARATOR,
    ) -> Self:
        """Build a table; the codes do not depend on the order or repetition of `conditions`."""
        return cls(control=as_label(control), separator=separator).extended(conditions)

    def extended(self, conditions: Iterable[Condition]) -> Self:
        """Return a table that also holds `conditions`; the codes and ids here stay as they are."""
        new = sorted(set(conditions) - set(self._code), key=_order)
        if not new:
            return self
        parts = {(part.name, part.kind) for condition in new for part in condition.components}
        return type(self)(
            control=self.control,
            separator=self.separator,
            components=(*self.components, *sorted(parts - set(self._id))),
            conditions=(*self.conditions, *new),
        )

    def __len__(self) -> int:
        """Return the number of conditions, control included."""
        return len(self.conditions)

    def __contains__(self, condition: object) -> bool:
        """Whether the condition has a code."""
        return condition in self._code

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.components)

    def codes(self, conditions: Iterable[Condition]) -> NDArray[np.int64]:
        """Return the code of each condition, `(n,)`.

        Raises
        ------
        UnknownPerturbationError
            If a component is not in the table.
        SchemaError
            If the components are known but not this combination, dose or time: `extended` adds it.
        """
        try:
            return np.fromiter((self._code[c] for c in conditions), dtype=np.int64)
        except KeyError as error:
            missing: Condition = error.args[0]
        for part in missing.components:
            self.component_index(part.name, part.kind)
        msg = (
            f"Condition '{missing}' has no code, though its components are known. "
            "Add it with `table.extended([condition])` first."
        )
        raise SchemaError(msg)

    def find_component(self, name: str, kind: str = "") -> int | None:
        """Return a component's id; None if it is not in the table."""
        return self._id.get((name, kind))

    def component_index(self, name: str, kind: str = "") -> int:
        """Return a component's id.

        Raises
        ------
        UnknownPerturbationError
            If it is not in the table.
        """
        place = self.find_component(name, kind)
        if place is not None:
            return place
        raise UnknownPerturbationError(
            f"{name} ({kind})" if kind else name,
            (known for known, _ in self.components),
            control=self.control,
            separator=self.separator,
        )

    def arrays(self, conditions: Iterable[Condition] | None = None) -> ConditionArrays:
        """Return conditions as padded arrays; those of the table, by code, if None.

        The given conditions need no code: their components must be known.

        Raises
        ------
        UnknownPerturbationError
            If a component is not in the table.
        """
        rows = self.conditions if conditions is None else tuple(conditions)
        shape = (len(rows), max((1, *(len(row.components) for row in rows))))
        component, dose = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        mask = np.zeros(shape, bool)
        for i, row in enumerate(rows):
            for j, part in enumerate(row.components):
                component[i, j] = self.component_index(part.name, part.kind)
                dose[i, j] = part.dose
                mask[i, j] = True
        return ConditionArrays(component, dose, mask, np.array([r.time for r in rows], np.float32))

    def frame(self, conditions: Iterable[Condition] | None = None) -> pd.DataFrame:
        """Return conditions as text: `perturbation`, `dose`, `time`, `perturbation_type`."""
        rows = self.conditions if conditions is None else tuple(conditions)
        return pd.DataFrame(
            {
                "perturbation": [row.format(self.control, self.separator) for row in rows],
                "dose": [row.format_doses(self.separator) for row in rows],
                "time": np.array([row.time for row in rows], float),
                "perturbation_type": [row.format_kinds(self.separator) for row in rows],
            }
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the table as plain types, fit for JSON."""
        return {
            "control": self.control,
            "separator": self.separator,
            "components": [list(component) for component in self.components],
            "conditions": [
                {
                    "components": [[self._id[p.name, p.kind], p.dose] for p in c.components],
                    "time": c.time,
                }
                for c in self.conditions
            ],
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Rebuild a table from `to_dict`."""
        components = tuple((str(name), str(kind)) for name, kind in state["components"])
        parts = (
            (Component(components[i][0], dose, components[i][1]) for i, dose in row["components"])
            for row in state["conditions"]
        )
        times = (row["time"] for row in state["conditions"])
        conditions = tuple(map(Condition, map(tuple, parts), times))
        return cls(state["control"], state["separator"], components, conditions)


def encode_obs(
    obs: pd.DataFrame,
    keys: ScreenKeys,
    table: ConditionTable | None = None,
    *,
    require_control: bool = False,
) -> tuple[NDArray[np.int64], ConditionTable]:
    """Return the condition code of each cell and the table that explains the codes.

    Only distinct rows are parsed, so the cost hardly grows with the number of cells. Integer, text
    and categorical columns give the same result.

    `obs`: Annotation, one row a cell. `keys`: The columns that describe the condition. `table`: A
    table to grow: its codes keep their meaning. None starts a new one. `require_control`: Whether
    cells must include controls. Returns codes, `(n_cells,)`, and the (grown) table. Raises
    `SchemaError`: If a column is absent, a perturbation is missing, a row cannot be parsed, or
    there is no control though `require_control`.
    """
    rows, inverse = distinct_rows(obs, keys)
    conditions = [keys.parse(**row) for row in rows]
    if table is None:
        table = ConditionTable(control=keys.control, separator=keys.separator)
    table = table.extended(conditions)
    codes = table.codes(conditions)[inverse]
    if require_control and not (codes == 0).any():
        found = ", ".join(repr(str(row["perturbation"])) for row in rows[:5])
        msg = (
            f"No control cell: no value of obs[{keys.perturbation!r}] is {keys.control!r} (found "
            f"{found}, ...). Name the control's label with `control=`, or use "
            "`scvi_perturb.pp.harmonize`."
        )
        raise SchemaError(msg)
    return codes, table


def _order(condition: Condition) -> tuple[Any, ...]:
    """Return a key that sorts singles before pairs, then by name, kind, dose and time."""
    parts = tuple((part.name, part.kind, part.dose) for part in condition.components)
    return len(parts), parts, -1.0 if condition.time is None else condition.time
