"""Molecules read from SMILES; those that cannot be read are named."""

from __future__ import annotations

import warnings
from collections import Counter
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb.features._listing import listed

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Invalid", "read_molecules", "require_rdkit"]

Invalid = Literal["raise", "skip"]


def read_molecules(smiles: Mapping[str, str] | pd.Series[Any], invalid: Invalid) -> dict[str, Any]:
    """Return the molecules that can be read; the others raise or are named in a warning."""
    from rdkit import rdBase
    from rdkit.Chem import MolFromSmiles

    check_choice("invalid", invalid, ("raise", "skip"))
    table = pd.Series(smiles, dtype=object)
    names = [str(name) for name in table.index]
    twice = sorted(name for name, n in Counter(names).items() if n > 1)
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
        warnings.warn(msg, UserWarning, stacklevel=3)
    return kept


def require_rdkit() -> None:
    """Raise an error that says what to install unless RDKit is there."""
    try:
        import rdkit  # noqa: F401
    except ImportError as error:
        msg = (
            "Molecules are read with RDKit, which is not installed. Install the extra: "
            "`pip install 'scvi-perturb[chem]'`."
        )
        raise ImportError(msg) from error
