"""Log-normalised cells, as metrics and predictors both compare them."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from scvi_perturb._constants import TARGET_SUM

__all__ = ["log_normalize_cells"]


def log_normalize_cells(counts: Any, *, target_sum: float = TARGET_SUM) -> Any:  # noqa: ANN401
    """Return `log1p(target_sum * counts / total of the cell)`, `(n_cells, n_genes)`, float64.

    CSR if `counts` is sparse, else dense. A cell without counts stays zero.

    Raises
    ------
    ValueError
        If a cell has a negative total.
    """
    sizes = np.asarray(counts.sum(axis=1), dtype=np.float64).ravel()
    if sizes.size and sizes.min() < 0:
        msg = "Counts must not be negative; found a cell with a negative total. Pass raw counts."
        raise ValueError(msg)
    factor = target_sum / np.where(sizes > 0, sizes, 1.0)
    if not sparse.issparse(counts):
        return np.log1p(np.asarray(counts, dtype=np.float64) * factor[:, None])
    made = sparse.csr_matrix(counts, dtype=np.float64)
    made.data = np.log1p(made.data * np.repeat(factor, np.diff(made.indptr)))
    return made
