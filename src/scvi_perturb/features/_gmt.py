"""Files of gene sets."""

from __future__ import annotations

import gzip
from pathlib import Path

from scvi_perturb._errors import SchemaError

__all__ = ["read_gmt"]

_GZIP_MAGIC = b"\x1f\x8b"


def read_gmt(path: str | Path) -> dict[str, frozenset[str]]:
    """Read gene sets from a GMT file, plain or gzipped.

    A line is a set: its name, a description (which may be empty and is not kept) and its genes,
    with tabs between. A weight after a gene ("IL6,1.0") is dropped, and blank lines and fields are
    passed over.

    Returns
    -------
    Genes of each set, by its name, in the order of the file.

    Raises
    ------
    SchemaError
        Naming the line, if a set has no name, no genes or the name of an earlier one, or what
        follows the comma of a gene is not a number; also if the file has no set or is not text.
    """
    path = Path(path)
    content = path.read_bytes()
    try:
        if content[:2] == _GZIP_MAGIC:
            content = gzip.decompress(content)
        lines = content.decode("utf-8-sig").split("\n")
    except (EOFError, OSError, UnicodeDecodeError) as error:
        msg = f"{path.name} is not a text file of gene sets, plain or gzipped: {error}."
        raise SchemaError(msg) from error
    sets: dict[str, frozenset[str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            name, genes = _parsed(line)
            if name in sets:
                _refuse(f"set {name!r} comes twice; rename or merge them")
        except SchemaError as error:
            msg = f"{path.name}, line {number}: {error}."
            raise SchemaError(msg) from None
        sets[name] = genes
    if not sets:
        msg = f"{path.name} has no gene sets; expected lines of name, description and genes."
        raise SchemaError(msg)
    return sets


def _parsed(line: str) -> tuple[str, frozenset[str]]:
    """Return a line's set and its genes."""
    name, *rest = [field.strip() for field in line.split("\t")]
    genes = frozenset(_gene(field) for field in rest[1:] if field)
    if not name:
        _refuse("the set has no name")
    if not genes:
        _refuse(f"set {name!r} has no genes; expected name, description and genes, tabs between")
    return name, genes


def _gene(field: str) -> str:
    """Return a gene without its weight."""
    gene, comma, weight = field.partition(",")
    try:
        if comma:
            float(weight)
    except ValueError:
        _refuse(f"{field!r} is neither a gene nor a gene with a weight ('IL6,1.0')")
    if not gene.strip():
        _refuse(f"{field!r} names no gene")
    return gene.strip()


def _refuse(what: str) -> None:
    raise SchemaError(what)
