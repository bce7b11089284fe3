"""Screens and features in files, as what a task loads: by their content, not by their place."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.data import ConditionKeys, check_raw_counts, read_screen
from scvi_perturb.data._annotation import read_annotation
from scvi_perturb.features import PerturbationFeatures, gene_set_membership, morgan_fingerprints

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

__all__ = ["FeatureFiles", "ScreenFile", "content_hash", "read_annotations"]

_TABS = (".tsv", ".txt", ".tsv.gz", ".txt.gz")


def content_hash(path: Path) -> str:
    """Return a fingerprint of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def read_annotations(path: Path) -> tuple[AnnData, tuple[str, ...]]:
    """Return `obs`, `var` and `uns` of a screen, and the names of its layers, without its values.

    Raises
    ------
    SchemaError
        If the file is not an AnnData file.
    """
    import h5py
    from anndata import AnnData
    from anndata.io import read_elem

    try:
        with h5py.File(path) as file:
            obs, var = read_elem(file["obs"]), read_elem(file["var"])
            uns = read_elem(file["uns"]) if "uns" in file else {}
            layers = tuple(file["layers"]) if "layers" in file else ()
    except (OSError, KeyError, ValueError) as error:
        msg = (
            f"{path.name} could not be read as .h5ad: it may be cut off or not be an AnnData file; "
            f"copy or download it again. The reason given: {error}"
        )
        raise SchemaError(msg) from error
    return AnnData(obs=obs, var=var, uns=uns), layers


@dataclass(frozen=True, repr=False)
class ScreenFile:
    """Loads a screen from a file.

    What it is printed as, by which records tell whether they still hold, is its content: a file
    that was moved is the same screen, one that was changed is another.

    Parameters
    ----------
    path
        The file.
    content
        Fingerprint of its content.
    layer
        Layer of the counts; None is `X`.
    has_counts
        Whether the values must be raw counts.
    """

    path: Path
    content: str
    layer: str | None = None
    has_counts: bool = True

    def __call__(self) -> AnnData:
        """Return the screen.

        Raises
        ------
        SchemaError
            If the file cannot be read, or does not hold counts where it should.
        """
        adata = read_screen(self.path)
        if self.has_counts:
            where = "X" if self.layer is None else f"layer {self.layer!r}"
            check_raw_counts(matrix_of(adata, self.layer), where=f"{self.path.name}, {where}")
        return adata

    def __repr__(self) -> str:
        return f"ScreenFile({self.content}, {self.layer}, {self.has_counts})"


@dataclass(frozen=True, repr=False)
class FeatureFiles:
    """Makes features of a screen's perturbations from files and from a column of SMILES.

    Parameters
    ----------
    keys
        Where the screen names its perturbations.
    gene_sets
        GMT files.
    table
        File of a table, one row a perturbation.
    smiles
        Column of `obs`.
    content
        Fingerprint of the content of the files.
    """

    keys: ConditionKeys
    gene_sets: tuple[Path, ...] = ()
    table: Path | None = None
    smiles: str | None = None
    content: str = ""

    def __call__(self, adata: AnnData) -> PerturbationFeatures:
        """Return what is known of the perturbations of a screen.

        Raises
        ------
        SchemaError
            If a source says nothing about any of them, or cannot be read.
        ImportError
            If SMILES are given and RDKit is not installed.
        """
        annotation = read_annotation(adata, self.keys)
        names = sorted(set[str]().union(*annotation.names))
        made: dict[str, pd.DataFrame] = {}
        if self.gene_sets:
            made["gene_sets"] = gene_set_membership(self.gene_sets, names)
        if self.table is not None:
            made["table"] = _rows_of(self.table, names)
        if self.smiles is not None:
            made["fingerprint"] = morgan_fingerprints(self._molecules(adata, self.smiles))
        return PerturbationFeatures(made)

    def __repr__(self) -> str:
        return f"FeatureFiles({self.content}, {self.smiles}, {self.keys})"

    def _molecules(self, adata: AnnData, column: str) -> dict[str, str]:
        """Return the SMILES of each perturbation that has one."""
        annotation = read_annotation(adata, self.keys)
        conditions = [annotation.conditions[group] for group in annotation.group]
        single = [len(c.components) == 1 for c in conditions]
        names = [c.names[0] for c, alone in zip(conditions, single, strict=True) if alone]
        written = adata.obs.loc[single, column].astype(object)
        pairs = pd.DataFrame({"name": names, "smiles": written.to_numpy()}).dropna()
        pairs["smiles"] = pairs["smiles"].astype(str).str.strip()
        pairs = pairs[~pairs["smiles"].isin(["", "nan"])].drop_duplicates()
        twice = pairs.loc[pairs["name"].duplicated(), "name"].unique().tolist()
        if twice or pairs.empty:
            what = f"says different things of {twice[:3]}" if twice else "is empty throughout"
            msg = f"obs[{column!r}] {what}; expected one SMILES for each perturbation."
            raise SchemaError(msg)
        return dict(zip(pairs["name"], pairs["smiles"], strict=True))


def _rows_of(path: Path, names: list[str]) -> pd.DataFrame:
    """Return the rows of a table that are those of perturbations in the screen."""
    try:
        table: Any = pd.read_csv(path, index_col=0, sep="\t" if _has_tabs(path) else ",")
    except (ValueError, OSError) as error:
        msg = f"{path.name} could not be read as a table, first column the names: {error}."
        raise SchemaError(msg) from error
    table.index = table.index.astype(str)
    found = table[table.index.isin(names)]
    if found.empty:
        some = table.index[:3].tolist()
        msg = (
            f"{path.name} has no row of a perturbation of the screen; its first names are {some}, "
            f"the screen's {names[:3]}. Use the same names."
        )
        raise SchemaError(msg)
    return pd.DataFrame(found)


def _has_tabs(path: Path) -> bool:
    return path.name.endswith(_TABS)
