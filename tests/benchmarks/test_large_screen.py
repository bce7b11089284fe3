"""The simulated screen of the measurements is written by block, and is a screen."""

from __future__ import annotations

import anndata
import numpy as np

from benchmarks.scale import large_screen


def test_blocks_hold_raw_counts_of_all_perturbations(tmp_path, monkeypatch):
    monkeypatch.setattr(large_screen, "_BLOCK", 300)
    size = {"n_cells": 1000, "n_perturbations": 20, "n_genes": 200, "n_counts": 100}
    made = []
    for name in ("a", "b"):
        large_screen.write_large_screen(tmp_path / f"{name}.h5ad", **size, n_contexts=2)
        made.append(anndata.read_h5ad(tmp_path / f"{name}.h5ad"))
    adata, again = made
    assert adata.shape == (1000, 200)
    assert adata.X.has_canonical_format
    assert (adata.X != again.X).nnz == 0
    np.testing.assert_array_equal(adata.X.data, np.rint(adata.X.data))
    # Library sizes have mean 100 and, Gamma-Poisson of shape 4, standard deviation 51.
    assert abs(adata.X.sum(axis=1).mean() - 100) < 4 * 51 / np.sqrt(1000)
    labels = adata.obs["perturbation"]
    assert labels.nunique() == 21
    assert 0.02 < (labels == "control").mean() < 0.09
    assert adata.obs["cell_type"].value_counts().tolist() == [500, 500]
    changes = [adata.X[(labels == f"pert_{i:05d}").to_numpy()].sum(axis=0) for i in range(20)]
    shares = np.stack([np.asarray(x).ravel() / x.sum() for x in changes])
    assert np.abs(shares - shares.mean(axis=0)).sum(axis=1).min() > 0.1, "each moves a tenth"
