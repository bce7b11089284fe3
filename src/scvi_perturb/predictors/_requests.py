"""Read what a user asks for: names, or a table of conditions and contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from scvi_perturb._constants import (
    DOSE_COLUMN,
    KIND_COLUMN,
    PERTURBATION_COLUMN,
    TIME_COLUMN,
)
from scvi_perturb._errors import SchemaError
from scvi_perturb.data._condition import as_label
from scvi_perturb.data._keys import as_labels
from scvi_perturb.data._request_table import request_table
from scvi_perturb.data._table import ConditionTable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.data._condition import Condition
    from scvi_perturb.data._keys import ConditionKeys
    from scvi_perturb.predictors._protocol import Conditions

__all__ = [
    "Context",
    "Request",
    "context_labels",
    "parse_requests",
    "request_frame",
]

#: A label for each context column; None where it was not said.
Context = tuple[str | None, ...]

_CANONICAL: Final = {
    "perturbation": PERTURBATION_COLUMN,
    "dose": DOSE_COLUMN,
    "time": TIME_COLUMN,
    "kind": KIND_COLUMN,
}


@dataclass(frozen=True, slots=True)
class Request:
    """One condition in one context."""

    condition: Condition
    context: Context = ()


def parse_requests(
    conditions: Conditions, *, keys: ConditionKeys, context_keys: Sequence[str] = ()
) -> list[Request]:
    """Return one request a row.

    Parameters
    ----------
    conditions
        Names, or a table. The condition's columns may have the names of `keys` or the canonical
        ones (`perturbation`, `dose`, `time`, `perturbation_type`).
    keys
        How the screen describes conditions.
    context_keys
        Context columns; one that is absent or empty stays open (None).

    Raises
    ------
    SchemaError
        If nothing is asked, a column that the screen has is missing, or the table has one that
        would be ignored in silence.
    """
    table = request_table(conditions, keys, context_keys)
    contexts = context_labels(table, context_keys)
    rows = table.to_dict("records")
    requests = []
    for row, context in zip(rows, contexts, strict=True):
        label = row[keys.perturbation]
        said = {role: row[column] for role, column in keys.columns.items() if column in table}
        absent = sorted(set(keys.columns) - set(said))
        if absent and as_label(label) != keys.control:
            msg = (
                f"{label!r} was asked for without its {absent[0]}, which these data distinguish. "
                f"Ask with a DataFrame that has the columns {sorted(keys.columns.values())}."
            )
            raise SchemaError(msg)
        requests.append(Request(keys.parse(**said), context))
    return requests


def context_labels(obs: pd.DataFrame, context_keys: Sequence[str]) -> list[Context]:
    """Return each row's context; None where a column is absent or has no value."""
    labels: list[Sequence[str | None]] = []
    for key in context_keys:
        if key in obs:
            labels.append(as_labels(obs[key]).tolist())
        else:
            labels.append([None] * len(obs))
    return list(zip(*labels, strict=True)) if labels else [()] * len(obs)


def request_frame(
    requests: Sequence[Request], keys: ConditionKeys, context_keys: Sequence[str]
) -> pd.DataFrame:
    """Return requests as the `obs` of an answer, under the names of the screen's columns."""
    table = ConditionTable(control=keys.control, separator=keys.separator)
    text = table.frame([request.condition for request in requests])
    columns: dict[str, Any] = {
        column: text[_CANONICAL[role]] for role, column in keys.columns.items()
    }
    for i, key in enumerate(context_keys):
        columns[key] = pd.Categorical([request.context[i] for request in requests])
    return pd.DataFrame(columns).set_index(text.index.astype(str))
