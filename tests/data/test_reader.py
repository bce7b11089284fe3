"""Cells by index, in the order asked for, whatever they are stored in."""

from __future__ import annotations

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from scipy import sparse
from scvi.data import AnnDataManager

from scvi_perturb.data import ScreenKeys
from scvi_perturb.data import reader as _reader
from scvi_perturb.data.fields import CountsField, LabelField, LibraryField, PerturbationField
from scvi_perturb.data.reader import ScreenReader, read_rows

N_CELLS, N_GENES = 12, 5
#: In no order, with repetitions.
ASKED = np.array([7, 3, 5, 3, 11, 0, 7])
COUNTS = np.random.default_rng(0).poisson(0.8, (N_CELLS, N_GENES)).astype(np.float32)


def _backed(matrix, folder):
    AnnData(matrix).write_h5ad(folder / "cells.h5ad")
    return anndata.read_h5ad(folder / "cells.h5ad", backed="r")


MATRICES = {
    "dense": lambda folder: COUNTS,
    "csr": lambda folder: sparse.csr_matrix(COUNTS),
    "csc": lambda folder: sparse.csc_matrix(COUNTS),
    "csr array": lambda folder: sparse.csr_array(COUNTS),
    "backed csr": lambda folder: _backed(sparse.csr_matrix(COUNTS), folder).X,
    "backed csc": lambda folder: _backed(sparse.csc_matrix(COUNTS), folder).X,
    "backed dense": lambda folder: _backed(COUNTS, folder).X,
}


def dense(matrix):
    return matrix.toarray() if sparse.issparse(matrix) else np.asarray(matrix)


@pytest.mark.parametrize("storage", MATRICES)
@pytest.mark.parametrize("asked", [ASKED, ASKED[:1], np.arange(N_CELLS)[::-1]], ids=len)
def test_rows_come_in_the_order_asked_for(storage, asked, tmp_path):
    found = read_rows(MATRICES[storage](tmp_path), asked)
    np.testing.assert_array_equal(dense(found), COUNTS[asked])


@pytest.mark.parametrize("storage", MATRICES)
def test_rows_are_summed_in_parts(storage, tmp_path, monkeypatch):
    monkeypatch.setattr(_reader, "_CHUNK", 5)
    found = _reader.row_sums(MATRICES[storage](tmp_path), N_CELLS)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found, COUNTS.sum(axis=1))


def test_stored_zeros_are_no_non_zeros_and_the_storage_is_left_alone():
    matrix = sparse.csr_matrix(COUNTS)
    matrix.data[:4] = 0
    n_stored = matrix.nnz
    found = read_rows(matrix, np.arange(N_CELLS))
    assert found.nnz == n_stored - 4
    assert matrix.nnz == n_stored


def screen(matrix, *, library=False):
    obs = pd.DataFrame(
        {
            "perturbation": ["control", "A", "B"] * 4,
            "cell_type": ["T"] * 5 + ["B"] * 7,
            "batch": ["x", "y"] * 6,
            "size": np.arange(N_CELLS) + 100.0,
        },
        index=[f"c{i}" for i in range(N_CELLS)],
    )
    adata = AnnData(matrix, obs=obs, var=pd.DataFrame(index=[f"g{i}" for i in range(N_GENES)]))
    fields = [
        CountsField(None),
        PerturbationField(ScreenKeys("perturbation")),
        LabelField("context", ("cell_type",)),
        LabelField("batch", ("batch",)),
        LibraryField("library", "size" if library else None),
    ]
    manager = AnnDataManager(fields=fields, setup_method_args={})
    manager.register_fields(adata)
    return ScreenReader(manager)


@pytest.mark.parametrize("storage", ["dense", "csr", "csc"])
def test_batch_is_a_dict_of_tensors(storage, tmp_path):
    reader = screen(MATRICES[storage](tmp_path))
    batch = reader[ASKED]
    assert len(reader) == N_CELLS
    np.testing.assert_array_equal(batch["X"], COUNTS[ASKED])
    assert batch["condition"].tolist() == [(0, 1, 2)[i % 3] for i in ASKED]
    assert batch["context"].tolist() == [int(i < 5) for i in ASKED]
    assert batch["batch"].tolist() == [i % 2 for i in ASKED]
    np.testing.assert_allclose(batch["library"], COUNTS[ASKED].sum(1))
    assert {batch[key].dtype for key in ("condition", "context", "batch")} == {torch.int64}
    assert batch["X"].dtype == batch["library"].dtype == torch.float32


@pytest.mark.parametrize("storage", ["csr", "csc"])
def test_places_of_the_non_zeros_are_told(storage, tmp_path):
    batch = screen(MATRICES[storage](tmp_path))[ASKED]
    rows, columns = np.nonzero(COUNTS[ASKED])
    told = set(zip(batch["rows"].tolist(), batch["columns"].tolist(), strict=True))
    assert told == set(zip(rows.tolist(), columns.tolist(), strict=True))
    assert len(batch["rows"]) == len(rows)
    assert "rows" not in screen(COUNTS)[ASKED]


def test_column_compressed_counts_are_turned_once():
    assert screen(sparse.csc_matrix(COUNTS)).counts.format == "csr"


def test_registered_library_sizes_are_used():
    reader = screen(sparse.csr_matrix(COUNTS), library=True)
    np.testing.assert_array_equal(reader[ASKED]["library"], ASKED + 100.0)
    np.testing.assert_array_equal(reader.library_sizes(), np.arange(N_CELLS) + 100.0)
    summed = screen(sparse.csr_matrix(COUNTS)).library_sizes()
    np.testing.assert_allclose(summed, COUNTS.sum(1))


def test_one_index_is_a_batch_of_one():
    reader = screen(sparse.csr_matrix(COUNTS))
    for asked in (4, [4], np.int64(4)):
        np.testing.assert_array_equal(reader[asked]["X"], COUNTS[[4]])


def test_tensors_share_no_memory_with_the_cells():
    reader = screen(COUNTS.copy())
    batch = reader[np.arange(N_CELLS)]
    batch["X"].zero_()
    batch["condition"].zero_()
    np.testing.assert_array_equal(reader[ASKED]["X"], COUNTS[ASKED])
    assert reader[[1]]["condition"].tolist() == [1]


def test_cell_that_is_not_there_raises():
    with pytest.raises(IndexError):
        screen(sparse.csr_matrix(COUNTS))[[N_CELLS]]
