"""Bring the annotation of a public screen into canonical columns."""

from __future__ import annotations

import logging
import math
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
from scvi_perturb.data._condition import as_label
from scvi_perturb.data._keys import as_labels, row_codes
from scvi_perturb.pp._components import conditions_of, parts_of
from scvi_perturb.pp._controls import ControlLabels
from scvi_perturb.pp._layouts import Schema, source_columns
from scvi_perturb.pp._units import is_missing, to_one_unit

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

__all__ = ["harmonize"]

logger = logging.getLogger(__name__)

_LABEL_COLUMNS = ("cell_type", "batch", "donor")
_LIBRARY_COLUMN = "library_size"


def harmonize(
    adata: AnnData,
    schema: Schema | Mapping[str, str] = "auto",
    *,
    control: str | Sequence[str] | None = None,
    copy: bool = True,
) -> AnnData:
    """Write canonical columns from the layout of a public screen.

    Columns written, where the screen has them: `perturbation` ("A+B", "control"), `dose` ("5+10",
    in one unit), `time` (hours), `perturbation_type`, `cell_type`, `batch`, `donor`,
    `library_size`. Other columns and the counts stay as they are. What was read from where, the
    keys and the units are put into `uns["scvi_perturb"]`; translations are logged. The "(+)" of a
    chemical name is written "(plus)": "+" stands between components.

    Parameters
    ----------
    adata
        A screen.
    schema
        "scperturb", "gears", "cpa", "pertpy", "canonical", or "auto" to recognise one of them by
        its columns; or a mapping of canonical field to column, such as
        `{"perturbation": "gene", "dose": "concentration", "dose_unit": "unit"}`.
    control
        Label or labels of control cells. None recognises the usual ones, such as "ctrl",
        "non-targeting", "NT", "DMSO", "vehicle", "unperturbed".
    copy
        Whether to leave `adata` as it is. A copy of a backed AnnData is read into memory; a view
        is always copied.

    Returns
    -------
    The screen with canonical columns.

    Raises
    ------
    ValueError
        If the schema is not known.
    SchemaError
        If a column is absent, a perturbation is missing, a perturbed cell has no dose though others
        have, or units cannot be brought to one.

    References
    ----------
    Peidli et al., scPerturb, Nature Methods 2024, for its layout.
    """
    before = adata.uns.get(UNS_KEY, {})
    if schema == "auto" and "schema" in before:
        schema = "canonical"
    name, columns = source_columns(schema, adata.obs.columns)
    if name == "canonical" and "units" in before:  # done before: units of the source are past
        columns = {f: c for f, c in columns.items() if f not in ("dose_unit", "time_unit")}
    if copy or adata.is_view:
        adata = adata.to_memory() if adata.isbacked else adata.copy()
    labels = ControlLabels(control)
    made, units = _condition_columns(adata.obs, columns, labels)
    for field in _LABEL_COLUMNS:
        if field in columns:
            made[field] = _categories(adata.obs[columns[field]])
    if _LIBRARY_COLUMN in columns:
        sizes = pd.to_numeric(adata.obs[columns[_LIBRARY_COLUMN]], errors="coerce")
        if (sizes > 0).all():
            made[_LIBRARY_COLUMN] = sizes.to_numpy(float)
        else:
            logger.warning("Column %r is not a library size.", columns[_LIBRARY_COLUMN])
    for column, values in made.items():
        adata.obs[column] = values
    _report(adata, name, columns, labels)
    keys = {
        "perturbation": PERTURBATION_COLUMN,
        "dose": DOSE_COLUMN,
        "time": TIME_COLUMN,
        "kind": KIND_COLUMN,
    }
    known = before.get("units", {})
    adata.uns[UNS_KEY] = {
        **before,
        "schema": name,
        "source": columns,
        "units": {what: unit or known.get(what, "") for what, unit in units.items()},
        "keys": {role: column for role, column in keys.items() if column in made}
        | {"control": CONTROL, "separator": SEPARATOR}
        | ({"batch": "batch"} if "batch" in made else {})
        | ({"context": ["cell_type"]} if "cell_type" in made else {}),
    }
    return adata


def _condition_columns(
    obs: pd.DataFrame, columns: Mapping[str, str], control: ControlLabels
) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the columns that describe conditions, and the units of doses and times."""
    fields = {f: c for f, c in columns.items() if f not in (*_LABEL_COLUMNS, _LIBRARY_COLUMN)}
    first, inverse = row_codes(obs, list(fields.values()))
    picked = {field: obs[column].iloc[first].tolist() for field, column in fields.items()}
    rows = [{field: values[i] for field, values in picked.items()} for i in range(len(first))]
    labels = [row["perturbation"] for row in rows]
    missing = np.array([is_missing(x) and as_label(x) not in control for x in labels])[inverse]
    if missing.any():
        msg = (
            f"obs[{columns['perturbation']!r}] is missing for {missing.sum()} of {len(obs)} cells; "
            "drop these cells, or label them as control."
        )
        raise SchemaError(msg)
    conditions, dose_unit = conditions_of([parts_of(row, control) for row in rows])
    made: dict[str, Any] = {PERTURBATION_COLUMN: [c.format() for c in conditions]}
    units = {}
    if dose_unit is not None:
        made[DOSE_COLUMN] = [c.format_doses() for c in conditions]
        units["dose"] = dose_unit
    if "perturbation_type" in columns:
        made[KIND_COLUMN] = [c.format_kinds() or CONTROL for c in conditions]
    written: dict[str, Any] = {column: _spread(values, inverse) for column, values in made.items()}
    times, unit = to_one_unit(
        [(row.get("time"), row.get("time_unit")) for row in rows], what="time"
    )
    if not all(map(math.isnan, times)):
        written[TIME_COLUMN] = np.array(times)[inverse]
        units["time"] = unit
    return written, units


def _spread(values: Sequence[str], inverse: NDArray[np.int64]) -> pd.Categorical[str]:
    """Return one value a cell from those of distinct rows."""
    return pd.Categorical(np.array(values, dtype=object)[inverse])


def _categories(column: pd.Series[Any]) -> pd.Categorical[Any]:
    """Return labels as text categories; missing ones stay missing."""
    return pd.Categorical(as_labels(column))


def _report(adata: AnnData, name: str, columns: Mapping[str, str], control: ControlLabels) -> None:
    """Log what was read from where, and what was taken for control."""
    renamed = {field: column for field, column in columns.items() if field != column}
    logger.info("Layout %r; columns read under other names: %s.", name, renamed or "none")
    translated = sorted(control.met - {CONTROL})
    if translated:
        logger.info("Labels taken for %r: %s.", CONTROL, translated)
    if not (adata.obs[PERTURBATION_COLUMN] == CONTROL).any():
        logger.warning("No control cell was found; name its label with `control=...`.")
