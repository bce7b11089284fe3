"""Molecules: Morgan fingerprints, and scaffolds as clusters. Needs RDKit (extra `chem`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from scvi_perturb.features._fingerprints import molecular_fingerprints
from scvi_perturb.features._smiles import read_molecules, require_rdkit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb.features._smiles import Invalid

__all__ = ["morgan_fingerprints", "murcko_scaffolds"]


def morgan_fingerprints(
    smiles: Mapping[str, str] | pd.Series[Any],
    *,
    radius: int = 2,
    n_bits: int = 2048,
    counts: bool = False,
    invalid: Invalid = "raise",
) -> pd.DataFrame:
    """Return Morgan fingerprints: which circular neighbourhoods of atoms a molecule has.

    The folded fingerprint of Rogers & Hahn (J. Chem. Inf. Model. 2010), as RDKit makes it.
    Molecules are taken as they are written: salts and mixtures keep all their parts.
    Stereochemistry does not count.

    Parameters
    ----------
    smiles
        SMILES of each perturbation, by its name.
    radius
        Largest distance from the central atom, in bonds; 2 gives what is known as ECFP4.
    n_bits
        Length of the fingerprint.
    counts
        Whether a column says how often its neighbourhoods occur, or only whether they do.
    invalid
        What to do with a SMILES that is missing or cannot be read: "raise", or "skip" to leave the
        molecule out and warn.

    Returns
    -------
    A table `(n_molecules, n_bits)` of integers, index = name as given, columns "morgan_0" and so
    on: a modality of `PerturbationFeatures`.

    Raises
    ------
    ImportError
        If RDKit is not installed.
    SchemaError
        If molecules cannot be read (all of them are named, up to ten), none are left, or a name
        comes twice.
    ValueError
        If `radius` is negative, `n_bits` is not positive, or `invalid` is not known.

    Examples
    --------
    >>> table = morgan_fingerprints({"aspirin": "CC(=O)Oc1ccccc1C(=O)O"})  # doctest: +SKIP
    >>> table.shape  # doctest: +SKIP
    (1, 2048)
    """
    return molecular_fingerprints(
        smiles, "morgan", radius=radius, n_bits=n_bits, counts=counts, invalid=invalid
    )


def murcko_scaffolds(
    smiles: Mapping[str, str] | pd.Series[Any],
    *,
    generic: bool = False,
    invalid: Invalid = "raise",
) -> pd.Series[str]:
    """Return the scaffold of each molecule: its rings and what links them.

    The framework of Bemis & Murcko (J. Med. Chem. 1996). Molecules of one scaffold are alike, so a
    fair test of unseen molecules holds out scaffolds whole: pass the result as
    `SplitOptions(groups=...)`.

    Parameters
    ----------
    smiles
        SMILES of each perturbation, by its name. Salts and mixtures keep the rings of all parts.
    generic
        Whether every atom becomes carbon and every bond single, so that only the shape counts. A
        scaffold with an atom of more than four neighbours, which carbon cannot be, stays plain.
    invalid
        As in `morgan_fingerprints`.

    Returns
    -------
    Scaffolds as canonical SMILES without stereochemistry, index = name as given. A molecule without
    rings has no scaffold; its class is "acyclic:" and its own canonical SMILES, so that it stands
    alone but stays with duplicates of itself.

    Raises
    ------
    ImportError
        If RDKit is not installed.
    SchemaError
        If molecules cannot be read, none are left, or a name comes twice.
    """
    require_rdkit()
    from rdkit import rdBase

    molecules = read_molecules(smiles, invalid)
    with rdBase.BlockLogs():
        found = [_scaffold(molecule, generic=generic) for molecule in molecules.values()]
    return pd.Series(found, index=pd.Index(list(molecules)), name="scaffold", dtype=object)


def _scaffold(molecule: Any, *, generic: bool) -> str:  # noqa: ANN401
    """Return a molecule's scaffold, or a class of its own where it has no ring."""
    from rdkit.Chem import AtomValenceException, MolToSmiles
    from rdkit.Chem.Scaffolds import MurckoScaffold

    scaffold = MurckoScaffold.GetScaffoldForMol(molecule)
    if scaffold.GetNumAtoms() == 0:
        return f"acyclic:{MolToSmiles(molecule, isomericSmiles=False)}"
    if generic:
        try:
            shape = MurckoScaffold.MakeScaffoldGeneric(scaffold)
        except AtomValenceException:
            shape = scaffold
        # again: an exocyclic =O is part of a scaffold, but not once it is a carbon by a single bond
        scaffold = MurckoScaffold.GetScaffoldForMol(shape)
    return str(MolToSmiles(scaffold, isomericSmiles=False))
