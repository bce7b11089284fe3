"""Physico-chemical descriptors of molecules. Needs RDKit (extra `chem`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_perturb.features._smiles import read_molecules, require_rdkit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb.features._smiles import Invalid

__all__ = ["molecular_descriptors"]


def molecular_descriptors(
    smiles: Mapping[str, str] | pd.Series[Any],
    *,
    ranks: bool = True,
    invalid: Invalid = "raise",
) -> pd.DataFrame:
    """Return sizes, charges, surfaces, solubility and counts of groups: RDKit's descriptors.

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
    ImportError
        If RDKit is not installed.
    SchemaError
        As `molecular_fingerprints`.
    ValueError
        If `invalid` is not known.

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
    require_rdkit()
    from rdkit import rdBase
    from rdkit.Chem import Descriptors

    molecules = read_molecules(smiles, invalid)
    with rdBase.BlockLogs():
        values = np.array(
            [[made(one) for _, made in Descriptors.descList] for one in molecules.values()],
            np.float64,
        )
    values[~np.isfinite(values)] = np.nan
    columns = [name for name, _ in Descriptors.descList]
    table = pd.DataFrame(values, index=pd.Index(list(molecules)), columns=columns)
    if not ranks:
        return table
    return ((table.rank(method="min") - 1) / len(table)).fillna(0.0)
