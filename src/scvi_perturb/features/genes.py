"""Features of genes: membership of gene sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import (
    SchemaError,
    warn,
)
from scvi_perturb._files import read_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

#: Where a function writes down, in `attrs` of its table, how the table was made.
PROVENANCE: Final = "provenance"
_MOST = 10


def listed(names: Sequence[str]) -> str:
    """Return up to ten names, and how many others there are."""
    some = ", ".join(map(repr, names[:_MOST]))
    return some if len(names) <= _MOST else f"{some} and {len(names) - _MOST} others"


@checked
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
    sets: dict[str, frozenset[str]] = {}
    for number, line in enumerate(read_text(path, kind="a text file of gene sets").split("\n"), 1):
        if not line.strip():
            continue
        name, genes, fault = _parse_set(line)
        fault = f"set {name!r} comes twice; rename or merge them" if name in sets else fault
        if fault:
            msg = f"{path.name}, line {number}: {fault}."
            raise SchemaError(msg)
        sets[name] = genes
    if not sets:
        msg = f"{path.name} has no gene sets; expected lines of name, description and genes."
        raise SchemaError(msg)
    return sets


def _parse_set(line: str) -> tuple[str, frozenset[str], str]:
    """Return a line's set, its genes without their weights, and what is wrong with the line."""
    name, *rest = [field.strip() for field in line.split("\t")]
    fault = "" if name else "the set has no name"
    genes = set()
    for field in filter(None, rest[1:]):
        gene, comma, weight = (part.strip() for part in field.partition(","))
        if comma and not _is_number(weight):
            fault = f"{field!r} is neither a gene nor a gene with a weight ('IL6,1.0')"
        elif not gene:
            fault = f"{field!r} names no gene"
        genes.add(gene)
    if name and not genes:
        fault = f"set {name!r} has no genes; expected name, description and genes, tabs between"
    return name, frozenset(genes), fault


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


@checked
def gene_set_membership(
    gene_sets: Mapping[str, Collection[str]] | str | Path | Iterable[str | Path],
    genes: Iterable[str],
    *,
    min_size: int = 5,
    max_size: int = 500,
) -> pd.DataFrame:
    """Return a table of genes by gene sets: 1 if the gene is a member.

    All sets of the size asked for are columns, whichever genes are asked for, so that tables of
    other genes fit. Names are compared as they are written, capitals included.

    Parameters
    ----------
    gene_sets
        Genes of each set by its name, or GMT files. With several files the sets are named
        "file|set".
    genes
        Names of perturbed genes.
    min_size, max_size
        Sets with fewer or more genes, in the whole collection, are left out: small ones are rarely
        shared, large ones say little.

    Returns
    -------
    A table `(n_genes_found, n_sets)` of 0 and 1, index = gene in the order given: a modality of
    `PerturbationFeatures`. A gene that is in none of these sets has no row, since nothing is known
    of it; a warning names those.

    Raises
    ------
    SchemaError
        If no set has the size asked for, no gene is in any, or two files have one name.

    Examples
    --------
    >>> gene_set_membership({"cycle": ["CDK1", "MYC"], "stress": ["MYC"]}, ["MYC"], min_size=1)
         cycle  stress
    MYC      1       1
    """
    if not isinstance(gene_sets, str | Path | Mapping):
        gene_sets = list(gene_sets)
    collection = _read_sets(gene_sets)
    sizes = {name: len(set(members)) for name, members in collection.items()}
    kept = [name for name, size in sizes.items() if min_size <= size <= max_size]
    if not kept:
        found = f"{min(sizes.values())} to {max(sizes.values())}" if sizes else "no sets"
        msg = (
            f"No gene set has {min_size} to {max_size} genes (found: {found}). Change `min_size` "
            "or `max_size`."
        )
        raise SchemaError(msg)
    asked = list(dict.fromkeys(map(str, genes)))
    place = {gene: row for row, gene in enumerate(asked)}
    values = np.zeros((len(asked), len(kept)), np.uint8)
    for column, name in enumerate(kept):
        values[[place[gene] for gene in set(collection[name]) & place.keys()], column] = 1
    table = pd.DataFrame(values, index=pd.Index(asked), columns=kept)
    known = table.any(axis=1)
    lost = table.index[~known].tolist()
    if len(lost) == len(asked):
        msg = (
            f"None of the {len(asked)} genes ({listed(lost)}) is in any of the {len(kept)} sets, "
            f"whose genes are such as {sorted(collection[kept[0]])[:3]}. Use the same identifiers."
        )
        raise SchemaError(msg)
    if lost:
        msg = f"{len(lost)} of {len(asked)} genes are in no set and get no row: {listed(lost)}."
        warn(msg)
    made = table.loc[known]
    given = gene_sets if isinstance(gene_sets, list) else [gene_sets]
    files = [Path(one).name for one in given if isinstance(one, str | Path)]
    made.attrs[PROVENANCE] = {
        "made_by": "gene_set_membership",
        "n_sets": len(kept),
        "source": ", ".join(files) or "sets by name",
    }
    return made


def _read_sets(
    gene_sets: Mapping[str, Collection[str]] | str | Path | Iterable[str | Path],
) -> Mapping[str, Collection[str]]:
    """Return sets by name, read from files where files are named."""
    if isinstance(gene_sets, Mapping):
        return gene_sets
    if isinstance(gene_sets, str | Path):
        return read_gmt(gene_sets)
    paths = [Path(path) for path in gene_sets]
    if len(paths) == 1:
        return read_gmt(paths[0])
    stems = [path.name.removesuffix(".gz").removesuffix(".gmt") for path in paths]
    if len(set(stems)) < len(stems):
        msg = f"Two files have one name: {listed(sorted(stems))}; rename one, it prefixes its sets."
        raise SchemaError(msg)
    return {
        f"{stem}|{name}": members
        for stem, path in zip(stems, paths, strict=True)
        for name, members in read_gmt(path).items()
    }
