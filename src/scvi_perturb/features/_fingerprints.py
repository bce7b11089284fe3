"""Fingerprints of molecules: which parts they have, of several kinds. Needs RDKit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, get_args

import numpy as np
import pandas as pd

from scvi_perturb._errors import check_choice
from scvi_perturb.features._smiles import read_molecules, require_rdkit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scvi_perturb.features._smiles import Invalid

__all__ = ["FingerprintKind", "molecular_fingerprints"]

FingerprintKind = Literal[
    "morgan", "feature_morgan", "atom_pairs", "torsions", "paths", "maccs"
]  # fmt: skip

_CIRCULAR: Final = ("morgan", "feature_morgan")
_N_BITS: Final = 2048
_RADIUS: Final = 2


def molecular_fingerprints(
    smiles: Mapping[str, str] | pd.Series[Any],
    kind: FingerprintKind = "morgan",
    *,
    counts: bool = False,
    radius: int | None = None,
    n_bits: int | None = None,
    invalid: Invalid = "raise",
) -> pd.DataFrame:
    """Return which parts a molecule has, or how many of each: a fingerprint, as RDKit makes it.

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
    check_choice("kind", kind, get_args(FingerprintKind))
    if kind not in _CIRCULAR and radius is not None:
        msg = f"radius={radius} is for {' and '.join(_CIRCULAR)}; kind {kind!r} has none."
        raise ValueError(msg)
    if kind == "maccs" and (n_bits is not None or counts):
        msg = "kind 'maccs' is of 166 keys that are there or not; leave out `n_bits` and `counts`."
        raise ValueError(msg)
    radius = _RADIUS if radius is None else radius
    n_bits = _N_BITS if n_bits is None else n_bits
    if radius < 0 or n_bits < 1:
        msg = f"radius={radius}, n_bits={n_bits}: expected radius >= 0 and n_bits >= 1."
        raise ValueError(msg)
    require_rdkit()
    molecules = read_molecules(smiles, invalid)
    make = _maccs if kind == "maccs" else _hashed(kind, radius, n_bits, counts=counts)
    values = np.stack([make(molecule) for molecule in molecules.values()])
    first = 1 if kind == "maccs" else 0
    columns = [f"{kind}_{first + i}" for i in range(values.shape[1])]
    return pd.DataFrame(values, index=pd.Index(list(molecules)), columns=columns)


def _hashed(kind: FingerprintKind, radius: int, n_bits: int, *, counts: bool) -> Callable[..., Any]:
    """Return RDKit's maker of a hashed fingerprint."""
    from rdkit.Chem import rdFingerprintGenerator as made

    if kind in _CIRCULAR:
        roles = made.GetMorganFeatureAtomInvGen() if kind == "feature_morgan" else None
        generator = made.GetMorganGenerator(
            radius=radius, fpSize=n_bits, atomInvariantsGenerator=roles
        )
    elif kind == "atom_pairs":
        # else bits, too, would say how many there are
        generator = made.GetAtomPairGenerator(fpSize=n_bits, countSimulation=False)
    elif kind == "torsions":
        generator = made.GetTopologicalTorsionGenerator(fpSize=n_bits, countSimulation=False)
    else:
        generator = made.GetRDKitFPGenerator(fpSize=n_bits)
    if counts:
        return generator.GetCountFingerprintAsNumPy
    return generator.GetFingerprintAsNumPy


def _maccs(molecule: Any) -> Any:  # noqa: ANN401
    from rdkit.Chem.rdMolDescriptors import GetMACCSKeysFingerprint

    # bit 0 is unused
    return np.array(GetMACCSKeysFingerprint(molecule), np.uint8)[1:]
