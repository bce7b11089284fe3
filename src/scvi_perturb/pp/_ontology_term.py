"""One term of an ontology."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["OntologyTerm"]


@dataclass(frozen=True, slots=True)
class OntologyTerm:
    """One term of an ontology.

    Parameters
    ----------
    id
        Identifier, such as "CL:0000084" or "CVCL_0004".
    name
        Preferred label.
    synonyms
        Other labels that mean exactly this term.
    obsolete
        Whether the term is no longer to be used.
    replaced_by
        Identifier of the term to use instead of an obsolete one.
    """

    id: str
    name: str
    synonyms: tuple[str, ...] = ()
    obsolete: bool = False
    replaced_by: str | None = None
