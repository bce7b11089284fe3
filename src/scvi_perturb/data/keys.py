"""Where the annotation of a screen says what was done to each cell."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import pandas as pd

from scvi_perturb._core import (
    CONTROL,
    DOSE_COLUMN,
    KIND_COLUMN,
    PERTURBATION_COLUMN,
    SEPARATOR,
    TIME_COLUMN,
    UNS_KEY,
    SchemaError,
)
from scvi_perturb.data.condition import Condition, as_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ScreenKeys:
    """Where a screen holds its conditions, contexts and counts.

    Parameters
    ----------
    perturbation
        Column of labels: "A", "A+B", the control's label.
    dose, time, kind
        Columns of doses, times and kinds, or None where they are not recorded.
    control
        The control's label; numbers are read as text.
    separator
        What stands between the components of a combination.
    context
        Columns that say in what the perturbation acts, such as cell type and donor: one name, or
        several.
    batch
        Column of technical batches, which only models use.
    layer
        Layer of the raw counts; None is `X`.
    library
        Column of library sizes, which only models use; None sums the counts.
    """

    perturbation: str = PERTURBATION_COLUMN
    dose: str | None = None
    time: str | None = None
    kind: str | None = None
    control: str = CONTROL
    separator: str = SEPARATOR
    context: tuple[str, ...] = ()
    batch: str | None = None
    layer: str | None = None
    library: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "control", as_label(self.control))
        object.__setattr__(self, "context", as_columns(self.context))

    @property
    def columns(self) -> dict[str, str]:
        """The columns of the condition, by the argument of `Condition.parse` that they fill."""
        named = {
            "perturbation": self.perturbation,
            "dose": self.dose,
            "time": self.time,
            "kind": self.kind,
        }
        return {role: column for role, column in named.items() if column is not None}

    @property
    def obs_columns(self) -> list[str]:
        """The columns of the condition and the context."""
        return [*self.columns.values(), *self.context]

    def to_dict(self) -> dict[str, Any]:
        """Return the keys as plain types, fit for JSON; `ScreenKeys(**state)` reads them."""
        return asdict(self) | {"context": list(self.context)}

    def parse(
        self,
        *,
        perturbation: object,
        dose: object = None,
        time: object = None,
        kind: object = None,
    ) -> Condition:
        """Parse one row; see `Condition.parse`."""
        return Condition.parse(
            perturbation,
            dose=dose,
            time=time,
            kind=kind,
            control=self.control,
            separator=self.separator,
        )


def default_keys(adata: AnnData) -> ScreenKeys:
    """Return the keys that `scvi_perturb.pp.harmonize` recorded, or else the columns it writes.

    Raises
    ------
    SchemaError
        If nothing is recorded and there is no column "perturbation".
    """
    recorded = harmonised_keys(adata)
    if "perturbation" in recorded:  # not of samples that were not perturbed
        roles = {*ScreenKeys.__dataclass_fields__} & {*recorded} - {"context"}
        named = {role: str(recorded[role]) for role in roles}
        return ScreenKeys(**named, context=recorded["context"])
    if PERTURBATION_COLUMN not in adata.obs:
        _refuse_absent(PERTURBATION_COLUMN, adata.obs)
    return ScreenKeys(
        dose=DOSE_COLUMN if DOSE_COLUMN in adata.obs else None,
        time=TIME_COLUMN if TIME_COLUMN in adata.obs else None,
        kind=KIND_COLUMN if KIND_COLUMN in adata.obs else None,
    )


def harmonised_keys(adata: AnnData) -> dict[str, Any]:
    """Return the columns that `harmonize` wrote down, by what they hold."""
    recorded = adata.uns.get(UNS_KEY, {})
    keys = dict(recorded.get("keys", {})) if hasattr(recorded, "get") else {}
    keys["context"] = tuple(map(str, keys.get("context", ())))
    return {role: column for role, column in keys.items() if column is not None}


def as_columns(columns: str | Sequence[str] | None) -> tuple[str, ...]:
    """Return columns as a tuple; one name is one column, not its letters."""
    if columns is None:
        return ()
    return (columns,) if isinstance(columns, str) else tuple(columns)


def distinct_rows(
    obs: pd.DataFrame, keys: ScreenKeys
) -> tuple[list[dict[str, object]], NDArray[np.int64]]:
    """Return the distinct rows of the condition's columns, and which of them each cell has.

    Raises
    ------
    SchemaError
        If a column is absent or a perturbation is missing.
    """
    columns = keys.columns
    absent = sorted(set(columns.values()) - set(map(str, obs.columns)))
    if absent:
        _refuse_absent(absent[0], obs)
    missing = int(obs[columns["perturbation"]].isna().sum())
    if missing:
        msg = (
            f"obs[{columns['perturbation']!r}] is missing for {missing} of {len(obs)} cells; "
            "expected a label each. Drop these cells or label them as control."
        )
        raise SchemaError(msg)
    first, inverse = row_codes(obs, list(columns.values()))
    picked = {role: obs[column].iloc[first].tolist() for role, column in columns.items()}
    rows = [{role: values[i] for role, values in picked.items()} for i in range(len(first))]
    return rows, inverse


def _refuse_absent(column: str, obs: pd.DataFrame) -> NoReturn:
    msg = (
        f"obs has no column {column!r}; it has {sorted(map(str, obs.columns))}. Use "
        "`scvi_perturb.pp.harmonize`, or name the columns with `keys=ScreenKeys(...)`."
    )
    raise SchemaError(msg)


def as_labels(values: pd.Series[Any], missing: str | None = None) -> NDArray[np.object_]:
    """Return `as_label` of each value; only the distinct ones are turned into text."""
    codes, distinct = pd.factorize(values)
    labels = np.empty(len(distinct) + 1, dtype=object)
    labels[:] = [*map(as_label, distinct), missing]  # missing values have code -1, the last place
    found: NDArray[np.object_] = labels[codes]
    return found


def row_codes(
    obs: pd.DataFrame, columns: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the places of the first of each distinct row, and the number of each cell's row."""
    inverse = np.zeros(len(obs), np.int64)
    for column in columns:
        codes, values = pd.factorize(obs[column])
        inverse = pd.factorize(inverse * (len(values) + 1) + codes + 1)[0].astype(np.int64)
    _, first = np.unique(inverse, return_index=True)
    return first.astype(np.int64), inverse
