"""Where the annotation of a screen says what was done to each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_perturb._constants import (
    CONTROL,
    DOSE_COLUMN,
    KIND_COLUMN,
    PERTURBATION_COLUMN,
    SEPARATOR,
    TIME_COLUMN,
    UNS_KEY,
)
from scvi_perturb._errors import SchemaError
from scvi_perturb.data.condition import Condition, as_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["ConditionKeys", "as_labels", "default_keys", "distinct_rows", "row_codes"]


@dataclass(frozen=True, slots=True)
class ConditionKeys:
    """Which columns of `obs` hold the condition of a cell.

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
    """

    perturbation: str
    dose: str | None = None
    time: str | None = None
    kind: str | None = None
    control: str = CONTROL
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        object.__setattr__(self, "control", as_label(self.control))

    @property
    def columns(self) -> dict[str, str]:
        """The columns in use, by the argument of `Condition.parse` that they fill."""
        named = {
            "perturbation": self.perturbation,
            "dose": self.dose,
            "time": self.time,
            "kind": self.kind,
        }
        return {role: column for role, column in named.items() if column is not None}

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


def default_keys(adata: AnnData) -> ConditionKeys:
    """Return the keys that `scvi_perturb.pp.harmonize` recorded, or else the columns it writes.

    Raises
    ------
    SchemaError
        If nothing is recorded and there is no column "perturbation".
    """
    recorded = adata.uns.get(UNS_KEY, {}).get("keys")
    if recorded and "perturbation" in recorded:  # not of samples that were not perturbed
        roles = {*ConditionKeys.__dataclass_fields__} & {*recorded}
        return ConditionKeys(**{role: str(recorded[role]) for role in roles})
    if PERTURBATION_COLUMN not in adata.obs:
        msg = (
            f"obs has no column {PERTURBATION_COLUMN!r}; it has {sorted(map(str, adata.obs))}. "
            "Use `scvi_perturb.pp.harmonize`, or name the columns with `keys=ConditionKeys(...)`."
        )
        raise SchemaError(msg)
    return ConditionKeys(
        PERTURBATION_COLUMN,
        dose=DOSE_COLUMN if DOSE_COLUMN in adata.obs else None,
        time=TIME_COLUMN if TIME_COLUMN in adata.obs else None,
        kind=KIND_COLUMN if KIND_COLUMN in adata.obs else None,
    )


def distinct_rows(
    obs: pd.DataFrame, keys: ConditionKeys
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
        msg = f"obs has no column {absent[0]!r}; it has {sorted(map(str, obs.columns))}."
        raise SchemaError(msg)
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
