"""Labels and identifiers of terms, checked against an ontology where one is given."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from scvi_perturb.data.condition import as_label
from scvi_perturb.data.keys import row_codes
from scvi_perturb.pp._identifiers import term_identifier
from scvi_perturb.pp._layouts import id_field
from scvi_perturb.pp._missing import says_nothing
from scvi_perturb.pp._spread import spread
from scvi_perturb.pp._unknown import Unknown

if TYPE_CHECKING:
    from scvi_perturb.pp._ontology import OntologyTerms

__all__ = ["resolve", "term_columns"]


class Resolved(NamedTuple):
    """What is written for a label and an identifier, and what of them was not understood."""

    label: str | None
    identifier: str | None
    unknown: str | None = None


def term_columns(
    obs: pd.DataFrame,
    label_column: str | None,
    id_column: str | None,
    *,
    field: str,
    ontology: OntologyTerms | None,
) -> tuple[dict[str, Any], Unknown]:
    """Return the columns of labels and, where there are some, of identifiers; and the unknown.

    Parameters
    ----------
    obs
        Annotation of the cells.
    label_column, id_column
        Where labels and identifiers stand; not both None.
    field
        Canonical field.
    ontology
        Terms to check against; without them only the form of identifiers is.
    """
    named = [column for column in (label_column, id_column) if column is not None]
    first, inverse = row_codes(obs, named)
    nothing = [None] * len(first)
    labels = nothing if label_column is None else obs[label_column].iloc[first].tolist()
    ids = nothing if id_column is None else obs[id_column].iloc[first].tolist()
    unknown = Unknown(
        "identifiers such as 'UBERON:0002107'" if ontology is None else "a term of the ontology",
        None if ontology is None else ontology.instead,
    )
    found = []
    for label, identifier, n in zip(labels, ids, np.bincount(inverse).tolist(), strict=True):
        # A type called "unknown" is a context of its own, and has always been.
        blank = pd.isna(label) if field == "cell_type" else says_nothing(label)
        resolved = resolve(
            None if blank else as_label(label),
            None if says_nothing(identifier) else as_label(identifier),
            ontology,
        )
        found.append(resolved)
        if resolved.unknown is not None:
            unknown.add(resolved.unknown, n)
    made = {field: spread([item.label for item in found], inverse)}
    identifiers = [item.identifier for item in found]
    if id_column is not None or any(identifiers):
        made[id_field(field)] = spread(identifiers, inverse)
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
