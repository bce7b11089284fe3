"""Canonical columns of conditions: perturbation, dose, time, kind, identifiers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._constants import (
    CONTROL,
    DOSE_COLUMN,
    KIND_COLUMN,
    PERTURBATION_COLUMN,
    TIME_COLUMN,
)
from scvi_perturb._errors import SchemaError
from scvi_perturb.data.condition import as_label
from scvi_perturb.data.keys import row_codes
from scvi_perturb.pp._components import conditions_of, identifiers_of, parts_of
from scvi_perturb.pp._spread import spread
from scvi_perturb.pp._units import is_missing, to_one_unit
from scvi_perturb.pp._unknown import Unknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from numpy.typing import NDArray

    from scvi_perturb.pp._controls import ControlLabels

__all__ = ["ID_COLUMN", "condition_columns"]

ID_COLUMN = "perturbation_id"


def condition_columns(
    obs: pd.DataFrame, fields: Mapping[str, str], control: ControlLabels
) -> tuple[dict[str, Any], dict[str, str], dict[str, Unknown]]:
    """Return the columns that describe conditions, units of doses and times, and unknown ids.

    Parameters
    ----------
    obs
        Annotation of the cells.
    fields
        Column of each field of a condition that is there.
    control
        Says which labels are controls.

    Raises
    ------
    SchemaError
        If a perturbation is missing, a perturbed cell has no dose though others have, or units
        cannot be brought to one.
    """
    first, inverse = row_codes(obs, list(fields.values()))
    picked = {field: obs[column].iloc[first].tolist() for field, column in fields.items()}
    rows = [{field: values[i] for field, values in picked.items()} for i in range(len(first))]
    labels = [row["perturbation"] for row in rows]
    missing = np.array([is_missing(x) and as_label(x) not in control for x in labels])[inverse]
    if missing.any():
        msg = (
            f"obs[{fields['perturbation']!r}] is missing for {missing.sum()} of {len(obs)} cells; "
            "drop these cells, or label them as control."
        )
        raise SchemaError(msg)
    conditions, dose_unit = conditions_of([parts_of(row, control) for row in rows])
    made: dict[str, Any] = {PERTURBATION_COLUMN: [c.format() for c in conditions]}
    units = {}
    if dose_unit is not None:
        made[DOSE_COLUMN] = [c.format_doses() for c in conditions]
        units["dose"] = dose_unit
    if "perturbation_type" in fields:
        made[KIND_COLUMN] = [c.format_kinds() or CONTROL for c in conditions]
    unknown = {}
    if "perturbation_id" in fields:
        read = [identifiers_of(row, control) for row in rows]
        made[ID_COLUMN] = [text for text, _ in read]
        unknown[ID_COLUMN] = _unknown([labels for _, labels in read], inverse)
    written: dict[str, Any] = {column: spread(values, inverse) for column, values in made.items()}
    times, unit = to_one_unit(
        [(row.get("time"), row.get("time_unit")) for row in rows], what="time"
    )
    if not all(map(math.isnan, times)):
        written[TIME_COLUMN] = np.array(times)[inverse]
        units["time"] = unit
    return written, units, unknown


def _unknown(labels: Sequence[Sequence[str]], inverse: NDArray[np.int64]) -> Unknown:
    """Return the identifiers of each distinct row that are of no known form."""
    unknown = Unknown(
        "identifiers of Ensembl (ENSG...), ChEBI, ChEMBL or NCBITaxon, one for each perturbation"
    )
    for of_row, n in zip(labels, np.bincount(inverse).tolist(), strict=True):
        for label in of_row:
            unknown.add(label, n)
    return unknown
