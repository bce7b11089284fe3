"""What a user asks for, as a table under the names that a screen was registered with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from scvi_perturb._constants import DOSE_COLUMN, KIND_COLUMN, PERTURBATION_COLUMN, TIME_COLUMN
from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scvi_perturb.data.keys import ConditionKeys

__all__ = ["request_table"]


def request_table(
    conditions: str | Iterable[str] | pd.DataFrame, keys: ConditionKeys, others: Iterable[str]
) -> pd.DataFrame:
    """Return a request as a table; models and predictors read the same one.

    Parameters
    ----------
    conditions
        A name, names, or a table. Columns of the condition may have the names of `keys`, or
        `perturbation`, `dose`, `time`, `perturbation_type`.
    keys
        Columns of the condition.
    others
        Further columns that mean something: contexts, batch.

    Raises
    ------
    SchemaError
        When nothing is asked, there is no column of perturbations, or a column would be ignored.
    """
    if isinstance(conditions, str):
        conditions = [conditions]
    if not isinstance(conditions, pd.DataFrame):
        conditions = pd.DataFrame({keys.perturbation: list(conditions)}, dtype=object)
    if not len(conditions):
        msg = "The request is empty; name at least one condition."
        raise SchemaError(msg)
    roles = {
        PERTURBATION_COLUMN: keys.perturbation,
        DOSE_COLUMN: keys.dose,
        TIME_COLUMN: keys.time,
        KIND_COLUMN: keys.kind,
    }
    renamed = {
        name: column
        for name, column in roles.items()
        if column and name in conditions and column not in conditions
    }
    table = conditions.rename(columns=renamed)
    known = {*filter(None, roles.values()), *others}
    unknown = [str(c) for c in table.columns if c not in known]
    if unknown:
        msg = (
            f"The request has columns {sorted(unknown)}, which were not registered and would "
            f"change nothing; known are {sorted(known)}. Drop them, or name them at setup."
        )
        raise SchemaError(msg)
    if keys.perturbation not in table:
        names = " or ".join(map(repr, dict.fromkeys((keys.perturbation, PERTURBATION_COLUMN))))
        msg = f"The request needs a column {names}; it has {sorted(table.columns)}."
        raise SchemaError(msg)
    return table
