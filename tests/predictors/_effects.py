"""Tables of known changes, features that explain them, and predictors that take both."""

from __future__ import annotations

import inspect

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_perturb.features import PerturbationFeatures

FEATURES = PerturbationFeatures(
    {
        "sets": pd.DataFrame(
            [[1.0, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 1], [1, 1, 0, 1], [0, 0, 1, 1]],
            index=["A", "C", "D", "E", "F"],
        )
    }
)


def build(cls, **options):
    """Make a predictor, with features if it takes them."""
    takes = inspect.signature(cls).parameters
    return cls(**({"features": FEATURES} if "features" in takes else {}) | options)


def effects(rows, genes=None, **columns):
    """Return changes as data: `rows` are pairs of a name and its change."""
    values = np.array([change for _, change in rows], float)
    obs = pd.DataFrame({"perturbation": [name for name, _ in rows]} | columns)
    obs.index = [f"row{i}" for i in range(len(rows))]
    names = [f"g{i}" for i in range(values.shape[1])] if genes is None else genes
    return AnnData(X=values, obs=obs, var=pd.DataFrame(index=names))


def lfc(predictor, asked):
    """Return predicted changes, `(n, n_genes)`."""
    return predictor.predict(asked).layers["lfc"]


def pairs(names, changes):
    """Return rows for `effects`, as many as there are of both."""
    return list(zip(names, changes, strict=False))
