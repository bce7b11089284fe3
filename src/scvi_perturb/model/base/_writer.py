"""Write cells to an `.h5ad` file as they come, without holding them all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata
import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Sequence

    import h5py
    from scipy import sparse

__all__ = ["CsrFileWriter"]


class CsrFileWriter:
    """Append blocks of rows to the CSR matrix `X` of a file, of `n_columns` columns."""

    def __init__(self, file: h5py.File, *, n_columns: int) -> None:
        self._file = file
        self.n_columns, self.n_rows, self.n_values = n_columns, 0, 0
        group = self._file.create_group("X")
        self._arrays = {
            name: group.create_dataset(
                name, (0,), dtype, maxshape=(None,), chunks=(1 << 16,), compression="lzf"
            )
            for name, dtype in (("data", "f4"), ("indices", "i4"), ("indptr", "i8"))
        }
        self._extend("indptr", np.zeros(1, dtype=np.int64))

    def append(self, block: sparse.csr_matrix) -> None:
        """Append the rows of `block`."""
        self._extend("data", block.data)
        self._extend("indices", block.indices)
        self._extend("indptr", block.indptr[1:].astype(np.int64) + self.n_values)
        self.n_rows += block.shape[0]
        self.n_values += block.nnz

    def finish(self, *, obs: pd.DataFrame, genes: Sequence[str], uns: dict[str, Any]) -> None:
        """Add annotations."""
        group = self._file["X"]
        group.attrs.update(
            {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
            | {"shape": np.array([self.n_rows, self.n_columns], dtype=np.int64)}
        )
        self._file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        anndata.io.write_elem(self._file, "obs", obs)
        anndata.io.write_elem(self._file, "var", pd.DataFrame(index=pd.Index(list(genes))))
        anndata.io.write_elem(self._file, "uns", uns)
        for name in ("layers", "obsm", "varm", "obsp", "varp"):
            anndata.io.write_elem(self._file, name, {})

    def _extend(self, name: str, values: np.ndarray) -> None:
        array = self._arrays[name]
        array.resize((array.shape[0] + len(values),))
        array[array.shape[0] - len(values) :] = values
