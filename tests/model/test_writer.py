"""Cells written as they come: the same as in memory, and in place only when finished."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse

from scvi_perturb._files import writing_hdf5
from scvi_perturb.model.base.draw import CsrFileWriter

GENES = ["g0", "g1", "g2", "g3"]
UNS = {"scvi_perturb": {"seed": 3, "units": "counts", "trained_on": {"n_cells": 7}}}


def block(n, seed, density=0.4):
    drawn = np.random.default_rng(seed).poisson(density, (n, len(GENES)))
    return sparse.csr_matrix(drawn.astype(np.float32))


BLOCKS = [block(3, 0), block(1, 1), block(5, 2)]


def obs(n):
    columns = {"perturbation": pd.Categorical(["A", "B", "A"] * (n // 3)), "draw": np.arange(n)}
    return pd.DataFrame(columns, index=[f"row{i}" for i in range(n)])


def write(path, blocks=BLOCKS):
    n = sum(part.shape[0] for part in blocks)
    with writing_hdf5(path) as (file, _):
        writer = CsrFileWriter(file, n_columns=len(GENES))
        for part in blocks:
            writer.append(part)
        writer.finish(obs=obs(n), genes=GENES, uns=UNS)
    return anndata.read_h5ad(path, backed="r")


def test_file_equals_what_is_held_in_memory(tmp_path):
    backed = write(tmp_path / "cells.h5ad")
    assert backed.isbacked
    found = anndata.read_h5ad(tmp_path / "cells.h5ad")
    held = AnnData(
        sparse.vstack(BLOCKS, format="csr"), obs=obs(9), var=pd.DataFrame(index=GENES), uns=UNS
    )
    assert isinstance(found.X, sparse.csr_matrix)
    assert found.X.dtype == np.float32
    assert (found.X != held.X).nnz == 0
    pd.testing.assert_frame_equal(found.obs, held.obs)
    assert found.var_names.tolist() == GENES
    assert found.uns == UNS
    np.testing.assert_array_equal(backed[[8, 2]].X.toarray(), held.X[[8, 2]].toarray())
    held.write_h5ad(tmp_path / "held.h5ad")
    again = anndata.read_h5ad(tmp_path / "held.h5ad")
    assert set(found.layers) == set(again.layers)
    assert set(found.obsm) == set(again.obsm)


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.float64])
def test_whole_numbers_of_any_type_are_kept(tmp_path, dtype):
    found = write(tmp_path / "cells.h5ad", [part.astype(dtype) for part in BLOCKS])
    kept = found.to_memory().X
    assert (kept != sparse.vstack(BLOCKS)).nnz == 0


def test_cells_without_counts_and_no_cells(tmp_path):
    empty = sparse.csr_matrix((3, len(GENES)), dtype=np.float32)
    assert write(tmp_path / "a.h5ad", [empty, BLOCKS[0], empty]).to_memory().X.nnz == BLOCKS[0].nnz
    assert write(tmp_path / "b.h5ad", []).to_memory().shape == (0, len(GENES))


def test_blocks_may_be_larger_than_a_chunk_of_the_file(tmp_path):
    large = [block(9000, 5, density=3.0), block(9000, 6, density=3.0)]
    assert large[0].nnz > 1 << 15
    found = write(tmp_path / "cells.h5ad", large)
    assert (sparse.vstack(large) != found.to_memory().X).nnz == 0
