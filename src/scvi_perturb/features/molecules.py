"""Features of molecules: fingerprints, descriptors and scaffolds from SMILES."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import pandas as pd

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import (
    SchemaError,
    warn,
)
from scvi_perturb.features.genes import PROVENANCE, listed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

Invalid = Literal["raise", "skip"]


def _read_molecules(smiles: Mapping[str, str] | pd.Series[Any], invalid: Invalid) -> dict[str, Any]:
    """Return the molecules that can be read; the others raise or are named in a warning."""
    try:
        from rdkit import rdBase
        from rdkit.Chem import MolFromSmiles
    except ImportError as error:
        msg = (
            "Molecules are read with RDKit, which is not installed. Install the extra: "
            "`pip install 'scvi-perturb[chem]'`."
        )
        raise ImportError(msg) from error
    check_choice("invalid", invalid, ("raise", "skip"))
    table = pd.Series(smiles, dtype=object)
    names = table.index.map(str)
    twice = sorted(set(names[names.duplicated()]))
    if twice:
        msg = f"Names come twice: {listed(twice)}; keep one SMILES for each."
        raise SchemaError(msg)
    with rdBase.BlockLogs():
        read = {
            name: MolFromSmiles(text.strip()) if isinstance(text, str) else None
            for name, text in zip(names, table, strict=True)
        }
    kept = {name: made for name, made in read.items() if made is not None and made.GetNumAtoms()}
    bad = [name for name in names if name not in kept]
    if bad and (invalid == "raise" or not kept):
        msg = (
            f"The SMILES of {len(bad)} of {len(names)} perturbations are missing or unreadable: "
            f'{listed(bad)}. Mend them, or pass invalid="skip" to leave these without features.'
        )
        raise SchemaError(msg)
    if not kept:
        msg = "No molecules were given; expected SMILES by name, such as {'ethanol': 'CCO'}."
        raise SchemaError(msg)
    if bad:
        msg = f"Left out {len(bad)} of {len(names)}, whose SMILES cannot be read: {listed(bad)}."
        warn(msg)
    return kept


FingerprintKind = Literal["morgan", "feature_morgan", "atom_pairs", "torsions", "paths", "maccs"]

_CIRCULAR: Final = ("morgan", "feature_morgan")


@checked
def molecular_fingerprints(
    smiles: Mapping[str, str] | pd.Series[Any],
    kind: FingerprintKind = "morgan",
    *,
    counts: bool = False,
    radius: int | None = None,
    n_bits: int | None = None,
    invalid: Invalid = "raise",
) -> pd.DataFrame:
    """Return RDKit fingerprints: which substructures a molecule has, or how many of each.

    Molecules are taken as they are written: salts and mixtures keep all their parts.
    Stereochemistry does not count.

    Parameters
    ----------
    smiles
        SMILES of each perturbation, by its name.
    kind
        What a part is:

        - "morgan": the neighbourhood of an atom up to `radius` bonds (ECFP);
        - "feature_morgan": the same, atoms being told apart by their roles alone: donor, acceptor,
          aromatic, halogen, basic, acidic (FCFP);
        - "atom_pairs": two atoms and the number of bonds between them;
        - "torsions": four atoms in a row;
        - "paths": a chain or branched piece of one to seven bonds (RDKit's own);
        - "maccs": one of 166 chosen substructures.
    counts
        Whether a column says how often its parts occur, or only whether they do. Not for "maccs".
    radius
        Largest distance from the central atom, in bonds, of the Morgan kinds; None is 2, which
        gives what is known as ECFP4 and FCFP4.
    n_bits
        Length of the fingerprint, into which parts are hashed; None is 2,048. Not for "maccs".
    invalid
        What to do with a SMILES that is missing or cannot be read: "raise", or "skip" to leave the
        molecule out and warn.

    Returns
    -------
    A table `(n_molecules, n_bits)` of integers, index = name as given, columns "morgan_0" and so on
    by the kind ("maccs_1" to "maccs_166"): a modality of `PerturbationFeatures`.

    Raises
    ------
    ImportError
        If RDKit is not installed.
    SchemaError
        If molecules cannot be read (all of them are named, up to ten), none are left, or a name
        comes twice.
    ValueError
        If a choice is not known, `radius` is negative, `n_bits` is not positive, or one is given
        that the kind does not have.

    References
    ----------
    Rogers and Hahn, Extended-connectivity fingerprints, J. Chem. Inf. Model. 2010; Carhart, Smith
    and Venkataraghavan, Atom pairs as molecular features, J. Chem. Inf. Comput. Sci. 1985;
    Nilakantan et al., Topological torsion, J. Chem. Inf. Comput. Sci. 1987; Durant et al.,
    Reoptimization of MDL keys, J. Chem. Inf. Comput. Sci. 2002.

    Examples
    --------
    >>> table = molecular_fingerprints({"ethanol": "CCO"}, "paths", counts=True)  # doctest: +SKIP
    >>> table.shape  # doctest: +SKIP
    (1, 2048)
    """
    if kind not in _CIRCULAR and radius is not None:
        msg = f"radius={radius} is for {' and '.join(_CIRCULAR)}; kind {kind!r} has none."
        raise ValueError(msg)
    if kind == "maccs" and (n_bits is not None or counts):
        msg = "kind 'maccs' is of 166 keys that are there or not; leave out `n_bits` and `counts`."
        raise ValueError(msg)
    radius = 2 if radius is None else radius
    n_bits = 2048 if n_bits is None else n_bits
    molecules = _read_molecules(smiles, invalid)
    make = _maccs if kind == "maccs" else _hashed(kind, radius, n_bits, counts=counts)
    values = np.stack([make(molecule) for molecule in molecules.values()])
    first = 1 if kind == "maccs" else 0
    columns = [f"{kind}_{first + i}" for i in range(values.shape[1])]
    table = pd.DataFrame(values, index=pd.Index(list(molecules)), columns=columns)
    table.attrs[PROVENANCE] = {
        "made_by": "molecular_fingerprints", "kind": kind, "counts": counts, "source": "SMILES",
    }  # fmt: skip
    return table


def _hashed(kind: FingerprintKind, radius: int, n_bits: int, *, counts: bool) -> Callable[..., Any]:
    """Return RDKit's maker of a hashed fingerprint."""
    from rdkit.Chem import rdFingerprintGenerator as made

    if kind in _CIRCULAR:
        roles = made.GetMorganFeatureAtomInvGen() if kind == "feature_morgan" else None
        generator = made.GetMorganGenerator(
            radius=radius, fpSize=n_bits, atomInvariantsGenerator=roles
        )
    elif kind == "paths":
        generator = made.GetRDKitFPGenerator(fpSize=n_bits)
    else:
        pairs = kind == "atom_pairs"
        make = made.GetAtomPairGenerator if pairs else made.GetTopologicalTorsionGenerator
        # with count simulation bits, too, would say how many there are
        generator = make(fpSize=n_bits, countSimulation=False)
    return generator.GetCountFingerprintAsNumPy if counts else generator.GetFingerprintAsNumPy


def _maccs(molecule: Any) -> Any:  # noqa: ANN401
    from rdkit.Chem.rdMolDescriptors import GetMACCSKeysFingerprint

    # bit 0 is unused
    return np.array(GetMACCSKeysFingerprint(molecule), np.uint8)[1:]


@checked
def murcko_scaffolds(
    smiles: Mapping[str, str] | pd.Series[Any],
    *,
    generic: bool = False,
    invalid: Invalid = "raise",
) -> pd.Series[str]:
    """Return the Murcko scaffold of each molecule: its rings and their linkers.

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
        As in `molecular_fingerprints`.

    Returns
    -------
    Scaffolds as canonical SMILES without stereochemistry, index = name as given. A molecule without
    rings has no scaffold; its class is "acyclic:" and its own canonical SMILES, so that it stands
    alone but stays with duplicates of itself.

    Raises
    ------
    ImportError, SchemaError
        As `molecular_fingerprints`.
    """
    molecules = _read_molecules(smiles, invalid)
    from rdkit import rdBase

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


@checked
def molecular_descriptors(
    smiles: Mapping[str, str] | pd.Series[Any],
    *,
    ranks: bool = True,
    invalid: Invalid = "raise",
) -> pd.DataFrame:
    """Return RDKit descriptors: size, charge, surface, solubility and counts of groups.

    Their units have nothing in common and some span orders of magnitude, so that a distance of
    values is that of one or two of them. Ranks are all alike, and suit the similarity of what is
    not negative, `sum(min) / sum(max)`: of counts of groups, 0 is for those who have none.

    Parameters
    ----------
    smiles
        SMILES of each perturbation, by its name. Salts and mixtures keep all their parts.
    ranks
        Whether to return ranks or values. Ranks are among the molecules given: make one table of
        all that will be compared, those to be predicted too.
    invalid
        As in `molecular_fingerprints`.

    Returns
    -------
    A table `(n_molecules, n_descriptors)`, index = name as given, columns RDKit's names of some 200
    descriptors; which there are depends on RDKit's version. With `ranks`, float64 between 0 and
    1: the share of molecules that have less; 0 too where RDKit has no value. Else values in
    RDKit's units (g/mol for "MolWt", square Ångström for "TPSA"), NaN where it has none: fill or
    drop these before `PerturbationFeatures`.

    Raises
    ------
    ImportError, SchemaError, ValueError
        As `molecular_fingerprints`.

    References
    ----------
    Wildman and Crippen, Prediction of physicochemical parameters by atomic contributions, J. Chem.
    Inf. Comput. Sci. 1999; Ertl, Rohde and Selzer, Fast calculation of molecular polar surface
    area, J. Med. Chem. 2000; Bickerton et al., Quantifying the chemical beauty of drugs, Nature
    Chemistry 2012.

    Examples
    --------
    >>> table = molecular_descriptors({"ethanol": "CCO"}, ranks=False)  # doctest: +SKIP
    >>> round(table.loc["ethanol", "MolWt"], 2)  # doctest: +SKIP
    46.07
    """
    molecules = _read_molecules(smiles, invalid)
    from rdkit import rdBase
    from rdkit.Chem import Descriptors

    with rdBase.BlockLogs():
        values = np.array(
            [[made(one) for _, made in Descriptors.descList] for one in molecules.values()],
            np.float64,
        )
    values[~np.isfinite(values)] = np.nan
    columns = [name for name, _ in Descriptors.descList]
    table = pd.DataFrame(values, index=pd.Index(list(molecules)), columns=columns)
    if ranks:
        table = ((table.rank(method="min") - 1) / len(table)).fillna(0.0)
    table.attrs[PROVENANCE] = {
        "made_by": "molecular_descriptors", "ranks": ranks, "source": "SMILES",
    }  # fmt: skip
    return table
