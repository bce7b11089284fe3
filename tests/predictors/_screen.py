"""A screen whose every mean is known: all cells of a group are alike."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

GENES = [f"g{i}" for i in range(6)]
CONTROL = {"T": [40, 30, 10, 10, 5, 5], "B": [10, 10, 30, 40, 5, 5]}
FACTOR = {"control": [1] * 6, "A": [3, 1, 1, 1, 2, 1], "C": [1, 1, 2, 1, 1, 4]}
FACTOR["A+C"] = list(np.multiply(FACTOR["A"], FACTOR["C"]))


def log_profile(counts):
    counts = np.asarray(counts, float)
    return np.log1p(1e4 * counts / counts.sum())


def expected_counts(perturbation, cell_type):
    return np.multiply(FACTOR[perturbation], CONTROL[cell_type])


def make_screen(groups, n=3):
    """Return a screen with `n` cells, once, twice, ... as deep, of each group."""
    rows, perturbations, types = [], [], []
    for perturbation, cell_type in groups:
        for depth in range(1, n + 1):
            rows.append(expected_counts(perturbation, cell_type) * depth)
            perturbations.append(perturbation)
            types.append(cell_type)
    obs = pd.DataFrame(
        {"perturbation": perturbations, "cell_type": types},
        index=[f"cell{i}" for i in range(len(rows))],
    )
    counts = sparse.csr_matrix(np.array(rows, np.float32))
    return AnnData(X=counts, obs=obs, var=pd.DataFrame(index=GENES))
