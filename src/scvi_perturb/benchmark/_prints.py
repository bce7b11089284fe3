"""Fingerprints of cells, to find the same cell again."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.metrics._structure import chosen_genes

if TYPE_CHECKING:
    from scvi_perturb.metrics import Matrix

__all__ = ["prints"]

#: Genes in which a cell must be non-zero before an equal one cannot be chance.
_TELLING = 10
_DECIMALS = 3
_CHUNK = 4096


def prints(cells: Matrix) -> set[bytes]:
    """Return a fingerprint of each log-normalised cell that has enough genes to be told apart."""
    found: set[bytes] = set()
    for start in range(0, cells.shape[0], _CHUNK):
        part = chosen_genes(cells[start : start + _CHUNK])
        rounded = np.round(part.astype(np.float32), _DECIMALS)
        telling = (rounded != 0).sum(axis=1) >= _TELLING
        found.update(blake2b(row.tobytes(), digest_size=16).digest() for row in rounded[telling])
    return found
