"""Read cells by index, in the order asked for, from memory, from a backed file, from MuData."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scvi_perturb._constants import (
    BATCH_KEY,
    CONDITION_KEY,
    CONTEXT_KEY,
    LIBRARY_KEY,
    METADATA_PREFIX,
    X_KEY,
)

if TYPE_CHECKING:
    from scvi.data import AnnDataManager

    from scvi_perturb._typing import Batch

__all__ = ["ScreenReader", "read_rows", "row_sums"]

#: Rows that are summed at a time.
CHUNK = 8192


class ScreenReader:
    """Random access to the cells of a registered screen.

    A backed AnnData returns rows sorted by index, whatever order was asked for; here the order
    is kept. Counts come dense, with the places of the non-zeros beside them where the storage
    knows them: the likelihood needs to look at those only.

    Parameters
    ----------
    manager
        scvi-tools' manager of a registered AnnData or MuData.
    """

    def __init__(self, manager: AnnDataManager) -> None:
        self.codes = {
            key: _column(manager.get_from_registry(key)).astype(np.int64)
            for key in (CONDITION_KEY, CONTEXT_KEY, BATCH_KEY)
        }
        self.metadata = {
            key: _column(manager.get_from_registry(key))
            for key in manager.data_registry
            if key.startswith(METADATA_PREFIX)
        }
        self.n_cells = len(self.codes[CONDITION_KEY])
        n_genes = len(manager.get_state_registry(X_KEY)["column_names"])
        self.counts = _readable(manager.get_from_registry(X_KEY), (self.n_cells, n_genes))
        self.library: np.ndarray | None = None
        if LIBRARY_KEY in manager.data_registry:
            self.library = _column(manager.get_from_registry(LIBRARY_KEY)).astype(np.float32)

    def __len__(self) -> int:
        """Return the number of cells."""
        return self.n_cells

    def library_sizes(self) -> np.ndarray:
        """Return the library size of every cell, `(n_cells,)`."""
        if self.library is not None:
            return self.library
        return row_sums(self.counts, self.n_cells).astype(np.float32)

    def __getitem__(self, indices: np.ndarray | list[int] | int) -> Batch:
        """Return the cells at `indices` as a dict of tensors, in this order.

        Returns
        -------
        dict
            `X (B, G)` float32; `condition`, `context`, `batch (B,)` int64; `library (B,)`
            float32 (the sum of counts unless registered); `rows`, `columns` of the non-zeros;
            `metadata_<column> (B,)`, int64 codes or float32 numbers.
        """
        chosen = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        rows = read_rows(self.counts, chosen)
        batch: Batch = {k: torch.from_numpy(v[chosen]) for k, v in self.codes.items()}
        for key, values in self.metadata.items():
            column = torch.from_numpy(values[chosen])
            batch[key] = column.float() if column.is_floating_point() else column.long()
        if sparse.issparse(rows):
            batch["rows"] = torch.from_numpy(
                np.repeat(np.arange(len(chosen)), np.diff(rows.indptr)).astype(np.int64)
            )
            batch["columns"] = torch.from_numpy(rows.indices.astype(np.int64))
            dense = rows.toarray()
        else:
            dense = np.asarray(rows)
        batch[X_KEY] = torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32))
        if self.library is None:
            batch[LIBRARY_KEY] = batch[X_KEY].sum(dim=1)
        else:
            batch[LIBRARY_KEY] = torch.from_numpy(self.library[chosen])
        return batch


def read_rows(matrix: Any, indices: np.ndarray) -> Any:  # noqa: ANN401 - any array-like storage
    """Return `matrix[indices]` in the order of `indices`, also from storage that must be sorted.

    Parameters
    ----------
    matrix
        NumPy array, SciPy sparse matrix, or a backed dataset of either kind.
    indices
        Row numbers, in any order, with repetitions.
    """
    if isinstance(matrix, np.ndarray) or sparse.issparse(matrix):
        rows = matrix[indices]
    else:
        unique, inverse = np.unique(indices, return_inverse=True)
        rows = matrix[unique][inverse]
    if sparse.issparse(rows):
        rows = rows.tocsr()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows


def row_sums(matrix: Any, n_rows: int) -> np.ndarray:  # noqa: ANN401 - as `read_rows`
    """Return the sum of each row, `(n_rows,)` float64, of any storage that `read_rows` reads."""
    parts = np.array_split(np.arange(n_rows), max(1, n_rows // CHUNK))
    sums = [np.asarray(read_rows(matrix, rows).sum(axis=1)).ravel() for rows in parts]
    return np.concatenate(sums).astype(np.float64)


class _Rows:
    """Rows of a matrix that cannot say its shape: scvi-tools' layer of a collection of files."""

    def __init__(self, matrix: Any, shape: tuple[int, int]) -> None:  # noqa: ANN401
        self.matrix, self.shape = matrix, shape

    def __getitem__(self, indices: np.ndarray) -> sparse.csr_matrix:
        return self.matrix[indices]


def _readable(matrix: Any, shape: tuple[int, int]) -> Any:  # noqa: ANN401
    """Column-compressed counts are turned once: reading rows from them would scan all."""
    if isinstance(matrix, pd.DataFrame):
        return matrix.to_numpy()
    if not sparse.issparse(matrix):
        return matrix
    if not hasattr(matrix, "shape"):
        return _Rows(matrix, shape)
    return matrix if matrix.format == "csr" else matrix.tocsr()


def _column(values: Any) -> np.ndarray:  # noqa: ANN401
    return np.asarray(values).reshape(-1)
