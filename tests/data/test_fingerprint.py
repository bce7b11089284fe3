"""The fingerprint of a screen: of its content, and of nothing else."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from scvi_perturb import SchemaError
from scvi_perturb.data import ScreenKeys, split
from scvi_perturb.data.fields import data_hash
from scvi_perturb.testing import make_screen

KEYS = ScreenKeys(context=["cell_type"], batch="batch")


@pytest.fixture(scope="module")
def simulated():
    return make_screen(n_cells=60, n_genes=8)


@pytest.fixture
def screen(simulated):
    made = simulated.copy()
    made.uns = {}
    return made


def test_how_the_data_are_stored_does_not_matter(screen):
    wanted = data_hash(screen, KEYS)
    same = [screen.copy() for _ in range(6)]
    same[0].X = screen.X.toarray()
    same[1].X = screen.X.tocsc()
    same[2].X = screen.X.astype(np.float64)
    same[3].X = sparse.csr_array(screen.X.astype(np.int32))
    for column in ("perturbation", "cell_type", "batch"):
        same[4].obs[column] = same[4].obs[column].astype(str).astype(object)
    same[5].X = sparse.csr_matrix(
        (np.append(screen.X.data, 0), np.append(screen.X.indices, 7),
         np.append(screen.X.indptr[:-1], screen.X.nnz + 1)), shape=screen.shape,
    )  # fmt: skip
    nnz = same[5].X.nnz
    assert [data_hash(one, KEYS) for one in same] == [wanted] * 6
    assert same[5].X.nnz == nnz, "the data are not touched"
    for name in ("dense", "sparse"):
        same[0 if name == "dense" else 3].write_h5ad(f"{name}.h5ad")
        assert data_hash(anndata.read_h5ad(f"{name}.h5ad", backed="r"), KEYS) == wanted


def test_storage_does_not_matter_in_blocks(screen, monkeypatch):
    dense = screen.copy()
    dense.X = screen.X.toarray()
    monkeypatch.setattr("scvi_perturb.data.fields._BLOCK", 8 * 7)
    wanted = data_hash(screen, KEYS)
    assert data_hash(dense, KEYS) == wanted
    dense.X[-1, -1] += 1
    assert data_hash(dense, KEYS) != wanted


CHANGES = {
    "a count": lambda a: a.X.__setitem__((3, 2), 99),
    "all counts": lambda a: setattr(a, "X", a.X * 2),
    "a label": lambda a: shuffle(a, "perturbation"),
    "a context": lambda a: shuffle(a, "cell_type"),
    "a batch": lambda a: shuffle(a, "batch"),
    "a gene": lambda a: setattr(a, "var_names", a.var_names[::-1]),
    "a cell": lambda a: setattr(a, "obs_names", a.obs_names[::-1]),
}


def shuffle(adata, column):
    adata.obs[column] = adata.obs[column].to_numpy()[::-1]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.filterwarnings("ignore::scipy.sparse.SparseEfficiencyWarning")
def test_other_content_is_other_data(screen, change):
    wanted, keys = data_hash(screen, KEYS), KEYS
    made = split(screen, "cells", keys=keys, seed=0)
    made.check(screen)
    CHANGES[change](screen)
    assert data_hash(screen, keys) != wanted
    with pytest.raises(SchemaError, match="made for other data"):
        made.check(screen)


def test_library_sizes_and_further_columns_count(screen):
    screen.obs["total"] = np.arange(1.0, 61)
    screen.obs["age"] = pd.array([None, *range(59)], dtype="Int64")
    keys = ScreenKeys(context=["cell_type"], library="total")
    before = data_hash(screen, keys), data_hash(screen, KEYS, columns=["age"])
    assert before[1] != data_hash(screen, KEYS)
    screen.obs["total"] *= 1 + 1e-12
    screen.obs["age"] = screen.obs["age"].fillna(3)
    assert data_hash(screen, keys) != before[0]
    assert data_hash(screen, KEYS, columns=["age"]) != before[1]
