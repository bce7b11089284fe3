"""Genes: the gene sets that each belongs to, as features."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.features._gmt import read_gmt
from scvi_perturb.features._listing import listed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

__all__ = ["gene_set_membership"]


def gene_set_membership(
    gene_sets: Mapping[str, Collection[str]] | str | Path | Iterable[str | Path],
    genes: Iterable[str],
    *,
    min_size: int = 5,
    max_size: int = 500,
) -> pd.DataFrame:
    """Return which gene sets each gene is in.

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
    collection = _collected(gene_sets)
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
    known = np.asarray(values.any(axis=1), bool)
    lost = [gene for gene, there in zip(asked, known, strict=True) if not there]
    if len(lost) == len(asked):
        msg = (
            f"None of the {len(asked)} genes ({listed(lost)}) is in any of the {len(kept)} sets, "
            f"whose genes are such as {sorted(collection[kept[0]])[:3]}. Use the same identifiers."
        )
        raise SchemaError(msg)
    if lost:
        msg = f"{len(lost)} of {len(asked)} genes are in no set and get no row: {listed(lost)}."
        warnings.warn(msg, UserWarning, stacklevel=2)
    return pd.DataFrame(values, index=pd.Index(asked), columns=kept).loc[known]


def _collected(
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
