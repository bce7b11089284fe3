"""The terms of an ontology, found by identifier or by name."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from scvi_perturb.pp._identifiers import term_identifier
from scvi_perturb.pp._ontology_files import read_terms

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from scvi_perturb.pp._ontology_term import OntologyTerm

__all__ = ["OntologyTerms", "read_ontologies"]


class OntologyTerms:
    """Terms of an ontology, against which labels are checked.

    Parameters
    ----------
    terms
        The terms. Obsolete ones are known, so that a label can be told to be obsolete, but they
        match nothing.

    Examples
    --------
    >>> terms = OntologyTerms([OntologyTerm("CL:0000084", "T cell", ("T lymphocyte",))])
    >>> terms.match("t LYMPHOCYTE").id
    'CL:0000084'
    """

    def __init__(self, terms: Iterable[OntologyTerm]) -> None:
        self._by_id = {term.id: term for term in terms}
        self._by_name: dict[str, list[OntologyTerm]] = {}
        self._by_synonym: dict[str, list[OntologyTerm]] = {}
        self._obsolete: dict[str, OntologyTerm] = {}
        self._spelling: dict[str, str] = {}
        for term in self._by_id.values():
            if term.obsolete:
                self._obsolete.setdefault(_plain(term.name), term)
                continue
            self._by_name.setdefault(_plain(term.name), []).append(term)
            for synonym in {_plain(synonym) for synonym in term.synonyms}:
                self._by_synonym.setdefault(synonym, []).append(term)
            for name in (term.name, *term.synonyms):
                self._spelling.setdefault(_plain(name), name)

    def __len__(self) -> int:
        """Return the number of terms, obsolete ones included."""
        return len(self._by_id)

    @classmethod
    def read(cls, path: str | Path) -> OntologyTerms:
        """Read the terms of a file.

        Parameters
        ----------
        path
            An OBO file (".obo"), the text file of Cellosaurus (".txt"), either of them compressed
            (".gz"), or an OWL file (".owl"), for which the package pronto is needed.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ImportError
            If the file is in OWL and pronto is not installed.
        SchemaError
            If the kind of file is not known, or it holds no terms.
        """
        return cls(read_terms(Path(path)))

    def get(self, identifier: str) -> OntologyTerm | None:
        """Return the term of an identifier, obsolete or not; None if there is none."""
        found = self._by_id.get(identifier)
        return found or self._by_id.get(term_identifier(identifier) or "")

    def match(self, label: str) -> OntologyTerm | None:
        """Return the one term that has this name or else this exact synonym, whatever its case.

        None if there is no such term, if it is obsolete, or if there are several.
        """
        plain = _plain(label)
        found = self._by_name.get(plain) or self._by_synonym.get(plain) or []
        return found[0] if len(found) == 1 else None

    def instead(self, label: str) -> list[str]:
        """Return what a label or identifier that matches nothing may have meant, at most three.

        These are the terms that it could be, the term that replaces an obsolete one, or else the
        names that are spelt most alike.
        """
        plain = _plain(label)
        several = self._by_name.get(plain) or self._by_synonym.get(plain) or []
        if several:
            return [f"{term.name} ({term.id})" for term in several[:3]]
        obsolete = self.get(label) or self._obsolete.get(plain)
        if obsolete is not None:
            known = self.get(obsolete.replaced_by or "")
            return [f"{known.name} ({known.id})"] if known else []
        # Names that begin otherwise are left out: a large ontology has hundreds of thousands.
        near = [name for name in self._spelling if name[:1] == plain[:1]]
        return [self._spelling[name] for name in get_close_matches(plain, near, n=3)]


def read_ontologies(
    given: Mapping[str, str | Path | OntologyTerms] | None,
) -> dict[str, OntologyTerms]:
    """Return the ontology of each field, read where a path is given."""
    return {
        field: terms if isinstance(terms, OntologyTerms) else OntologyTerms.read(terms)
        for field, terms in (given or {}).items()
    }


def _plain(label: str) -> str:
    """Return a label without what does not tell terms apart: case and width of spaces."""
    return " ".join(label.casefold().split())
