"""Ontology terms: their identifiers, their files, and the meaning of labels."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb._files import is_file, read_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import BinaryIO

__all__ = ["OntologyTerm", "OntologyTerms", "perturbation_identifier", "term_identifier"]

#: For each prefix, how the identifier is written and the pattern of what follows the prefix.
_TERMS: Mapping[str, tuple[str, str]] = {
    "UBERON": ("UBERON:{}", r"\d{7}"),
    "CL": ("CL:{}", r"\d{7}"),
    "CVCL": ("CVCL_{}", r"[A-Z0-9]{4}"),
    "MONDO": ("MONDO:{}", r"\d{7}"),
    "DOID": ("DOID:{}", r"\d+"),
    "EFO": ("EFO:{}", r"\d{7}"),
    "NCIT": ("NCIT:{}", r"C\d+"),
    "BTO": ("BTO:{}", r"\d{7}"),
    "PATO": ("PATO:{}", r"\d{7}"),
    "HANCESTRO": ("HANCESTRO:{}", r"\d{4,7}"),
    "HsapDv": ("HsapDv:{}", r"\d{7}"),
    "MmusDv": ("MmusDv:{}", r"\d{7}"),
    "FBbt": ("FBbt:{}", r"\d{8}"),
    "FBdv": ("FBdv:{}", r"\d{8}"),
    "WBbt": ("WBbt:{}", r"\d{7}"),
    "WBls": ("WBls:{}", r"\d{7}"),
    "ZFA": ("ZFA:{}", r"\d{7}"),
    "ZFS": ("ZFS:{}", r"\d{7}"),
}
#: A CURIE, the same with "_", or the end of "http://.../obo/CL_0000236" or "RRID:CVCL_0004".
_TERM_PATTERNS = [
    (re.compile(rf"(?:.*[/#]|RRID:\s*|cellosaurus:)?{prefix}[:_]({rest})", re.IGNORECASE), form)
    for prefix, (form, rest) in _TERMS.items()
]
#: Genes of Ensembl without their version, compounds of ChEBI and ChEMBL, taxa of NCBI.
_PERTURBATION_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), form)
    for pattern, form in (
        (r"(ENS(?:[A-Z]{3,4})?G\d{11})(?:\.\d+)?", "{}"),
        (r"(?:.*/)?CHEBI[:_](\d+)", "CHEBI:{}"),
        (r"CHEMBL:?(\d+)", "CHEMBL{}"),
        (r"(?:.*/)?(?:NCBITaxon|taxid|txid)[:_]?(\d+)", "NCBITaxon:{}"),
    )
]

#: Cellosaurus calls all other names of a cell line related; they are names of this very line.
_CELLOSAURUS = "CVCL_"


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


@checked
class OntologyTerms:
    """The terms of an ontology, used to check labels.

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
                self._obsolete.setdefault(_normalized(term.name), term)
                continue
            self._by_name.setdefault(_normalized(term.name), []).append(term)
            for synonym in {_normalized(synonym) for synonym in term.synonyms}:
                self._by_synonym.setdefault(synonym, []).append(term)
            for name in (term.name, *term.synonyms):
                self._spelling.setdefault(_normalized(name), name)

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
        return cls(_read_terms(Path(path)))

    def get(self, identifier: str) -> OntologyTerm | None:
        """Return the term of an identifier, obsolete or not; None if there is none."""
        found = self._by_id.get(identifier)
        return found or self._by_id.get(term_identifier(identifier) or "")

    def match(self, label: str) -> OntologyTerm | None:
        """Return the only term with this name or exact synonym, ignoring case.

        None if there is no such term, if it is obsolete, or if there are several.
        """
        plain = _normalized(label)
        found = self._by_name.get(plain) or self._by_synonym.get(plain) or []
        return found[0] if len(found) == 1 else None

    def suggest(self, label: str) -> list[str]:
        """Return at most three suggestions for a label or identifier that matches nothing.

        These are the terms that it could be, the term that replaces an obsolete one, or else the
        names that are spelt most alike.
        """
        plain = _normalized(label)
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


def term_identifier(text: str) -> str | None:
    """Return an ontology's identifier as a CURIE, "CL:0000236"; None if the text is none.

    Those of Cellosaurus keep the form that Cellosaurus gives them, "CVCL_0004".
    """
    return _formatted(text, _TERM_PATTERNS)


def perturbation_identifier(text: str) -> str | None:
    """Return an identifier of a gene, compound or taxon in its source's form; None if it is none.

    "ENSG00000141510.5" becomes "ENSG00000141510", "chebi_15365" "CHEBI:15365", "chembl25"
    "CHEMBL25", "taxid:10090" "NCBITaxon:10090".
    """
    return _formatted(text, _PERTURBATION_PATTERNS)


def _read_terms(path: Path) -> list[OntologyTerm]:
    """Return the terms of a file; see `OntologyTerms.read` for kinds of files and errors."""
    if not is_file(path):
        msg = f"There is no ontology at {str(path)!r}; expected a file in OBO or OWL."
        raise FileNotFoundError(msg)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind not in (".obo", ".owl", ".txt"):
        msg = (
            f"An ontology in {path.name!r} cannot be read; expected '.obo', '.obo.gz', the '.txt' "
            "of Cellosaurus, or '.owl'."
        )
        raise SchemaError(msg)
    if kind == ".owl":
        terms = list(_owl(path))
    else:
        file = BytesIO(read_bytes(path, kind="an ontology"))
        terms = list(_obo(file, path.name) if kind == ".obo" else _cellosaurus(file))
    if not terms:
        msg = (
            f"{path.name!r} holds no terms; expected stanzas '[Term]' with 'id' and 'name' in OBO, "
            "or entries 'ID' and 'AC' in the text of Cellosaurus. Fetch the file anew."
        )
        raise SchemaError(msg)
    return terms


def _obo(file: BinaryIO, name: str) -> Iterator[OntologyTerm]:
    """Yield the terms of an OBO file that have a name."""
    import fastobo

    try:
        frames = [x for x in fastobo.iter(file) if isinstance(x, fastobo.term.TermFrame)]
    except SyntaxError as error:
        msg = (
            f"{name!r} is not in OBO format 1.4: {error.msg} in line {error.lineno}. "
            "Mend the line, or fetch the file anew."
        )
        raise SchemaError(msg) from error
    for frame in frames:
        identifier, found = str(frame.id), dict[str, Any]()
        exact = []
        for clause in frame:
            if isinstance(clause, fastobo.term.SynonymClause):
                synonym = clause.synonym
                if synonym.scope == "EXACT" or identifier.startswith(_CELLOSAURUS):
                    exact.append(synonym.desc)
            elif isinstance(clause, fastobo.term.NameClause):
                found.setdefault("name", clause.name.strip())
            elif isinstance(clause, fastobo.term.IsObsoleteClause):
                found.setdefault("obsolete", clause.obsolete)
            elif isinstance(clause, fastobo.term.ReplacedByClause):
                found.setdefault("replaced_by", str(clause.term))
        if "name" in found:
            yield OntologyTerm(identifier, synonyms=tuple(exact), **found)


def _cellosaurus(file: BinaryIO) -> Iterator[OntologyTerm]:
    """Yield the cell lines of the text file of Cellosaurus; an entry ends with "//"."""
    entry: dict[str, str] = {}
    for raw in file:
        line = raw.decode()
        code, value = line[:2], line[5:].strip()
        if code != "//":
            entry.setdefault(code, value)
            continue
        if {"ID", "AC"} <= {*entry}:
            synonyms = [name.strip() for name in entry.get("SY", "").split(";")]
            yield OntologyTerm(entry["AC"], entry["ID"], tuple(filter(None, synonyms)))
        entry = {}


def _owl(path: Path) -> Iterator[OntologyTerm]:
    """Yield the terms of an OWL file that have a name."""
    try:
        import pronto
    except ImportError as error:
        msg = (
            f"{path.name!r} is in OWL, for which pronto is needed; install "
            "scvi-perturb[ontology], or give the ontology's OBO file."
        )
        raise ImportError(msg) from error
    for term in pronto.Ontology(path).terms():
        if term.name is not None:
            exact = tuple(s.description for s in term.synonyms if s.scope == "EXACT")
            replaced = min((other.id for other in term.replaced_by), default=None)
            yield OntologyTerm(term.id, term.name, exact, term.obsolete, replaced)


def _formatted(text: str, patterns: list[tuple[re.Pattern[str], str]]) -> str | None:
    """Return the form of the first pattern that the whole text has."""
    for pattern, form in patterns:
        if match := pattern.fullmatch(text.strip()):
            return form.format(match[1].upper())
    return None


def _normalized(label: str) -> str:
    """Return a label without what does not tell terms apart: case and width of spaces."""
    return " ".join(label.casefold().split())
