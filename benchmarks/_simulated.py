"""Counts of a given density for measurements of speed: no structure to be learned."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse
from scipy.optimize import brentq

__all__ = ["simulate"]

_CHUNK = 2_000


def simulate(n_cells: int, n_genes: int, *, density: float = 0.1, seed: int = 0) -> AnnData:
    """Return Poisson counts with unequal genes and library sizes, CSR float32.

    The share of non-zero counts is `density` in expectation. `obs` has `perturbation` (control
    and two others) and `cell_type` (two).
    """
    rng = np.random.default_rng(seed)
    gene = rng.lognormal(0.0, 1.5, n_genes)
    library = rng.lognormal(0.0, 0.3, n_cells)
    some = library[:500, None] * gene

    def excess(log_scale: float) -> float:
        return float(-np.expm1(-np.exp(log_scale) * some).mean()) - density

    gene *= np.exp(brentq(excess, -30.0, 10.0))
    parts = [
        sparse.csr_matrix(rng.poisson(library[i : i + _CHUNK, None] * gene).astype(np.float32))
        for i in range(0, n_cells, _CHUNK)
    ]
    obs = pd.DataFrame(
        {
            "perturbation": rng.choice(["control", "A", "B"], n_cells),
            "cell_type": rng.choice(["first", "second"], n_cells),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    var = pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)])
    return AnnData(X=sparse.vstack(parts, format="csr"), obs=obs, var=var)
