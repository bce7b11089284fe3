"""Canonical columns of samples and cells: age, sex, and the terms of ontologies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_perturb.data.condition import as_label
from scvi_perturb.data.keys import as_labels, row_codes
from scvi_perturb.pp._age import age_in_years
from scvi_perturb.pp._layouts import TERM_FIELDS, id_field
from scvi_perturb.pp._missing import says_nothing
from scvi_perturb.pp._sex import canonical_sex
from scvi_perturb.pp._terms import term_columns
from scvi_perturb.pp._unknown import Unknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb.pp._ontology import OntologyTerms

__all__ = ["metadata_columns"]


def metadata_columns(
    obs: pd.DataFrame, columns: Mapping[str, str], ontologies: Mapping[str, OntologyTerms]
) -> tuple[dict[str, Any], dict[str, Unknown]]:
    """Return the canonical columns of samples and cells, and what was not understood.

    Parameters
    ----------
    obs
        Annotation of the cells.
    columns
        Column of each canonical field that is there.
    ontologies
        Terms against which the labels of a field are checked.
    """
    made: dict[str, Any] = {}
    unknown: dict[str, Unknown] = {}
    for field in ("batch", "donor"):
        if field in columns:
            made[field] = pd.Categorical(as_labels(obs[columns[field]]))
    if "age" in columns:
        made["age"], unknown["age"] = _ages(obs, columns["age"], columns.get("age_unit"))
    if "sex" in columns:
        made["sex"], unknown["sex"] = _sexes(obs[columns["sex"]])
    for field in TERM_FIELDS:
        label, identifier = columns.get(field), columns.get(id_field(field))
        if field == "cell_type" and label is not None and label == columns.get("cell_line"):
            made[field] = pd.Categorical(as_labels(obs[label]))  # in place of a type: no term of CL
        elif label is not None or identifier is not None:
            written, unknown[field] = term_columns(
                obs, label, identifier, field=field, ontology=ontologies.get(field)
            )
            made |= written
    return made, unknown


def _ages(obs: pd.DataFrame, column: str, unit_column: str | None) -> tuple[Any, Unknown]:
    """Return ages in years, and those that were not understood."""
    unknown = Unknown("a number, or one with days, weeks, months or years; a range is its midpoint")
    first, inverse = row_codes(obs, [column] if unit_column is None else [column, unit_column])
    values = obs[column].iloc[first].tolist()
    units = [None] * len(first) if unit_column is None else obs[unit_column].iloc[first].tolist()
    years = np.full(len(first), np.nan)
    for i, (value, unit, n) in enumerate(
        zip(values, units, np.bincount(inverse).tolist(), strict=True)
    ):
        age = age_in_years(value, unit)
        if age is None:
            text = as_label(value)
            unknown.add(text if says_nothing(unit) else f"{text} {as_label(unit)}", n)
        else:
            years[i] = age
    return years[inverse], unknown


def _sexes(column: pd.Series[Any]) -> tuple[Any, Unknown]:
    """Return "female", "male" or missing, and the values that are neither."""
    unknown = Unknown("'female' or 'male', or a usual word for them")
    labels = as_labels(column)
    read = {}
    for label, n in pd.Series(labels).value_counts().items():
        read[label] = canonical_sex(label)
        if read[label] is None and not says_nothing(label):
            unknown.add(str(label), n)
    return pd.Categorical([read.get(label) for label in labels]), unknown
