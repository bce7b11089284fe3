"""Canonical columns of samples and cells: age, sex, and the terms of ontologies."""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scvi_perturb.data.condition import as_label, as_labels, row_codes
from scvi_perturb.pp._ontology import term_identifier
from scvi_perturb.pp._quantities import age_in_years, is_unknown
from scvi_perturb.pp.layouts import TERM_FIELDS, id_field

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.pp._ontology import OntologyTerms

__all__ = ["UnknownValues", "canonical_sex", "metadata_columns", "resolve", "to_cells"]

logger = logging.getLogger(__name__)

#: In small letters; the identifiers are those of PATO.
_SEXES = {
    **dict.fromkeys(("female", "f", "woman", "girl", "xx", "pato:0000383"), "female"),
    **dict.fromkeys(("male", "m", "man", "boy", "xy", "pato:0000384"), "male"),
}


@dataclasses.dataclass(slots=True)
class UnknownValues:
    """The values of one field that were not understood, with their numbers of cells."""

    expected: str  # what would have been understood
    suggest: Callable[[str], list[str]] | None = None  # what a value may have meant
    n_cells: Counter[str] = dataclasses.field(default_factory=Counter)

    def warn(self, field: str, n_obs: int) -> None:
        """Log one warning for all values of the field, the most frequent ones by name."""
        if not self.n_cells:
            return
        often = sorted(self.n_cells, key=lambda label: (-self.n_cells[label], label))
        named = []
        for label in often[:5]:
            near = self.suggest(label) if self.suggest else []
            hint = f"; nearest: {', '.join(near)}" if near else ""
            named.append(f"{label!r} ({self.n_cells[label]}{hint})")
        rest = f" and {len(often) - 5} more" if len(often) > 5 else ""
        logger.warning(
            "%s is not understood in %d of %d cells: %s%s. Expected %s. All are listed in "
            "uns['scvi_perturb']['unknown_terms'][%r].",
            *(field, sum(self.n_cells.values()), n_obs, ", ".join(named), rest),
            *(self.expected, field),
        )


def metadata_columns(
    obs: pd.DataFrame, columns: Mapping[str, str], ontologies: Mapping[str, OntologyTerms]
) -> tuple[dict[str, Any], dict[str, UnknownValues]]:
    """Return the canonical columns of samples and cells, and what was not understood."""
    made: dict[str, Any] = {}
    unknown: dict[str, UnknownValues] = {}
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
            written, unknown[field] = _term_columns(
                obs, label, identifier, field=field, ontology=ontologies.get(field)
            )
            made |= written
    return made, unknown


def _ages(obs: pd.DataFrame, column: str, unit_column: str | None) -> tuple[Any, UnknownValues]:
    """Return ages in years, and those that were not understood."""
    unknown = UnknownValues(
        "a number, or one with days, weeks, months or years; a range is its midpoint"
    )
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
            unknown.n_cells[text if is_unknown(unit) else f"{text} {as_label(unit)}"] += n
        else:
            years[i] = age
    return years[inverse], unknown


def _sexes(column: pd.Series[Any]) -> tuple[Any, UnknownValues]:
    """Return "female", "male" or missing, and the values that are neither."""
    unknown = UnknownValues("'female' or 'male', or a usual word for them")
    labels = as_labels(column)
    read = {}
    for label, n in pd.Series(labels).value_counts().items():
        read[label] = canonical_sex(label)
        if read[label] is None and not is_unknown(label):
            unknown.n_cells[str(label)] += n
    return pd.Categorical([read.get(label) for label in labels]), unknown


def canonical_sex(value: object) -> str | None:
    """Return "female" or "male", or None if the value is not one of the words for them.

    Numbers are not read: studies differ in which of them means what.
    """
    return _SEXES.get(as_label(value).casefold())


class Resolved(NamedTuple):
    """What is written for a label and an identifier, and what of them was not understood."""

    label: str | None
    identifier: str | None
    unknown: str | None = None


def _term_columns(
    obs: pd.DataFrame,
    label_column: str | None,
    id_column: str | None,
    *,
    field: str,
    ontology: OntologyTerms | None,
) -> tuple[dict[str, Any], UnknownValues]:
    """Return the columns of labels and, where there are some, of identifiers; and the unknown."""
    named = [column for column in (label_column, id_column) if column is not None]
    first, inverse = row_codes(obs, named)
    nothing = [None] * len(first)
    labels = nothing if label_column is None else obs[label_column].iloc[first].tolist()
    ids = nothing if id_column is None else obs[id_column].iloc[first].tolist()
    unknown = UnknownValues(
        "identifiers such as 'UBERON:0002107'" if ontology is None else "a term of the ontology",
        None if ontology is None else ontology.suggest,
    )
    found = []
    for label, identifier, n in zip(labels, ids, np.bincount(inverse).tolist(), strict=True):
        # A type called "unknown" is a context of its own, and has always been.
        blank = pd.isna(label) if field == "cell_type" else is_unknown(label)
        resolved = resolve(
            None if blank else as_label(label),
            None if is_unknown(identifier) else as_label(identifier),
            ontology,
        )
        found.append(resolved)
        if resolved.unknown is not None:
            unknown.n_cells[resolved.unknown] += n
    made = {field: to_cells([item.label for item in found], inverse)}
    identifiers = [item.identifier for item in found]
    if id_column is not None or any(identifiers):
        made[id_field(field)] = to_cells(identifiers, inverse)
    return made, unknown


def resolve(label: str | None, identifier: str | None, ontology: OntologyTerms | None) -> Resolved:
    """Return what to write for a label, an identifier, or both; None stands for a missing one.

    An identifier in place of a label is read as one. With an ontology, a label that is the name or
    an exact synonym of one term gets the term's name and identifier; an identifier alone gets the
    name. What is unknown or obsolete, or says two things, stays as it is.
    """
    if label is not None and identifier is None:
        term = ontology.get(label) if ontology is not None else None
        own = term.id if term is not None else term_identifier(label)
        label, identifier = (None, own) if own is not None else (label, None)
    if ontology is None:
        return _formed(label, identifier)
    if identifier is None:
        if label is None:
            return Resolved(None, None)
        match = ontology.match(label)
        return Resolved(match.name, match.id) if match else Resolved(label, None, label)
    term = ontology.get(identifier)
    written = term.id if term is not None else term_identifier(identifier) or identifier
    if term is None or term.obsolete:
        return Resolved(label or written, written, written)
    match = term if label is None else ontology.match(label)
    if match == term:
        return Resolved(term.name, written)
    # A label of another term contradicts; one of no term is the authors' own word for this one.
    return Resolved(label, written, None if match is None else f"{label} ({written})")


def _formed(label: str | None, identifier: str | None) -> Resolved:
    """Return a label and an identifier in canonical form, or as it is if that is not known."""
    if identifier is None:
        return Resolved(label, None)
    known = term_identifier(identifier)
    written = known or identifier
    return Resolved(label or written, written, None if known else identifier)


def to_cells(values: Sequence[str | None], inverse: NDArray[np.int64]) -> pd.Categorical[str]:
    """Return text categories of cells from one value a distinct row; None is missing."""
    return pd.Categorical(np.array(values, dtype=object)[inverse])
