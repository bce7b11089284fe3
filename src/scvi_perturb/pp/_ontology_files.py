"""Terms of ontologies from OBO files, the text of Cellosaurus, and OWL."""

from __future__ import annotations

import gzip
import re
from typing import TYPE_CHECKING

from scvi_perturb._errors import SchemaError
from scvi_perturb.pp._ontology_term import OntologyTerm

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["read_terms"]

_SYNONYM = re.compile(r'"((?:[^"\\]|\\.)*)"\s+(\w+)')
_ESCAPE = re.compile(r"\\(.)")
#: Cellosaurus calls all other names of a cell line related; they are names of this very line.
_ALL_SYNONYMS = "CVCL_"


def read_terms(path: Path) -> list[OntologyTerm]:
    """Return the terms of a file; see `OntologyTerms.read` for kinds of files and errors."""
    if not path.is_file():
        msg = f"There is no ontology at {str(path)!r}; expected a file in OBO or OWL."
        raise FileNotFoundError(msg)
    kind = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if kind == ".owl":
        terms = list(_owl(path))
    elif kind in (".obo", ".txt"):
        terms = list((_obo if kind == ".obo" else _cellosaurus)(_lines(path)))
    else:
        msg = (
            f"An ontology in {path.name!r} cannot be read; expected '.obo', '.obo.gz', the '.txt' "
            "of Cellosaurus, or '.owl'."
        )
        raise SchemaError(msg)
    if not terms:
        msg = (
            f"{path.name!r} holds no terms; expected stanzas '[Term]' with 'id' and 'name' in OBO, "
            "or entries 'ID' and 'AC' in the text of Cellosaurus. Fetch the file anew."
        )
        raise SchemaError(msg)
    return terms


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, compressed or not."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from lines
    else:
        with path.open(encoding="utf-8") as lines:
            yield from lines


def _obo(lines: Iterable[str]) -> Iterator[OntologyTerm]:
    """Yield the terms of an OBO file that have a name."""
    tags: dict[str, list[str]] | None = None  # None outside of the stanzas of terms
    for line in (*lines, "[End]"):
        text = line.strip()
        if text.startswith("["):
            if tags is not None and {"id", "name"} <= {*tags}:
                yield _obo_term(tags)
            tags = {} if text == "[Term]" else None
        elif tags is not None and ":" in text:
            tag, _, value = text.partition(":")
            tags.setdefault(tag, []).append(value.strip())


def _obo_term(tags: dict[str, list[str]]) -> OntologyTerm:
    """Return a term from the values of its tags."""
    identifier = _value(tags["id"][0])
    exact = []
    for synonym in tags.get("synonym", ()):
        match = _SYNONYM.match(synonym)
        if match and (match[2] == "EXACT" or identifier.startswith(_ALL_SYNONYMS)):
            exact.append(_ESCAPE.sub(r"\1", match[1]))
    replaced = tags.get("replaced_by")
    return OntologyTerm(
        identifier,
        _ESCAPE.sub(r"\1", tags["name"][0]),
        tuple(exact),
        obsolete=_value(tags.get("is_obsolete", ["false"])[0]) == "true",
        replaced_by=_value(replaced[0]) if replaced else None,
    )


def _value(text: str) -> str:
    """Return a value without the comment and the qualifiers that may follow it."""
    return re.split(r"\s[!{]", text, maxsplit=1)[0].strip()


def _cellosaurus(lines: Iterable[str]) -> Iterator[OntologyTerm]:
    """Yield the cell lines of the text file of Cellosaurus; an entry ends with "//"."""
    entry: dict[str, str] = {}
    for line in lines:
        code, value = line[:2], line[5:].strip()
        if code != "//":
            entry.setdefault(code, value)
        else:
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
            exact = [s.description for s in term.synonyms if s.scope == "EXACT"]
            replaced = sorted(other.id for other in term.replaced_by)
            yield OntologyTerm(
                term.id,
                term.name,
                tuple(exact),
                obsolete=term.obsolete,
                replaced_by=replaced[0] if replaced else None,
            )
