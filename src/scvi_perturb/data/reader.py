"""Read screens: files, raw counts, genes in the order of training, batches of cells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scvi_perturb._checks import CONVERSIONS, checked, how_to_pass, how_to_read
from scvi_perturb._core import METADATA_PREFIX, NON_ZEROS, Key, SchemaError
from scvi_perturb._files import is_file
from scvi_perturb.data.shards import StoredRows, check_shards, is_stored_csr, open_shards

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from os import PathLike

    from anndata import AnnData
    from numpy.typing import NDArray
    from scvi.data import AnnDataManager

    from scvi_perturb._core import Batch
    from scvi_perturb.data.datamodule import BatchSource

#: An array, a SciPy sparse matrix, or a backed dataset: no common type is there to name.
Matrix: TypeAlias = Any

_BLOCKS = 16
_BLOCK_ROWS = 32
_BLOCK_ENTRIES = 16_384
#: Values in a block where all are read.
_ALL_ENTRIES = 1 << 22
#: Largest value that `log1p` of a per-ten-thousand profile, or of any library, plausibly takes.
_LOG_CEILING = 30.0


def check_adata(data: object, function: str) -> None:
    """Raise `TypeError` unless data are AnnData, or a collection of files; say what to pass.

    `function`: Name of the function that was called, for the message.
    """
    is_mudata = hasattr(getattr(data, "mod", None), "keys")
    if not is_mudata and all(hasattr(data, name) for name in ("obs", "obs_names", "layers")):
        return
    advice = how_to_pass(data)
    msg = f"{function} takes AnnData; found {type(data).__name__}. To mend this, {advice}."
    raise TypeError(msg)


def check_mudata(data: object, modality: str) -> None:
    """Raise unless data are MuData with a modality: `TypeError`, or `SchemaError` without it."""
    modalities = getattr(data, "mod", None)
    if not hasattr(modalities, "keys"):
        msg = (
            f"After setup_mudata data are MuData; found {type(data).__name__}. Pass "
            f"mudata.MuData({{{modality!r}: adata}}), or use setup_anndata."
        )
        raise TypeError(msg)
    if modality not in modalities:  # type: ignore[operator]
        msg = f"rna_modality={modality!r} is not there; the modalities are {[*modalities]}."  # type: ignore[misc]
        raise SchemaError(msg)


def other_matrices(adata: AnnData) -> dict[str, Matrix]:
    """Return the matrices of a screen by name, for the advice of `check_raw_counts`."""
    # `keys()`: the layers of a collection of files have no `in` and cannot be iterated.
    names = [name for name in adata.layers.keys() if name is not None]  # noqa: SIM118
    layers = {name: adata.layers[name] for name in names}
    raw = getattr(adata, "raw", None)
    if raw is not None:
        same = len(raw.var_names) >= adata.n_vars and adata.var_names.isin(raw.var_names).all()
        layers["adata.raw" if same else "adata.raw, other genes"] = raw.X
    return {"X": adata.X, **layers} if hasattr(adata, "X") else layers


#: What to type where `adata.raw` holds the counts.
_FROM_RAW = {
    "adata.raw": 'adata.layers["counts"] = adata.raw[:, adata.var_names].X, and pass '
    "layer='counts'",
    "adata.raw, other genes": "adata = adata.raw.to_adata()",
}


def check_raw_counts(X: Matrix, *, where: str, layers: Mapping[str, Matrix] | None = None) -> None:
    """Raise unless a matrix holds raw counts: finite, not negative, whole numbers.

    All values are read once to find what is not finite. For the rest a bounded sample is read (16
    blocks spread over the matrix, at most about 260,000 stored values of a sparse one or 512 rows
    of a dense one).

    `X`: Matrix `(n_cells, n_genes)`: an array, a SciPy sparse matrix (CSR, CSC), or a backed
    dataset of HDF5 or zarr, dense or sparse. `where`: What `X` is, for the message, such as
    ``"adata.X"``. `layers`: Other matrices, of `other_matrices` or by name of the layer. When `X`
    fails and one of these holds counts, the message says to pass it. The key ``"X"`` stands for
    `adata.X`, that is ``layer=None``. Raises `SchemaError`: If a value is NaN or infinite, or the
    sample has negative or non-integer values, or values are not numeric.
    """
    found = _fault(X) or next(filter(None, map(_not_finite, sampled_values(X, whole=True))), None)
    if found is None:
        return
    # anndata 0.13 counts X among the layers, as None.
    others = {
        name: layer for name, layer in (layers or {}).items() if name is not None and layer is not X
    }
    holding = [name for name, layer in others.items() if holds_counts(layer)]
    from_raw = next((line for name, line in _FROM_RAW.items() if name in holding), None)
    names = ["None (adata.X)" if n == "X" else repr(n) for n in holding if n not in _FROM_RAW]
    if names:
        advice = f"Counts are elsewhere in these data: pass layer={', '.join(names)}."
    elif from_raw is not None:
        advice = f"Counts are in adata.raw: {from_raw}."
    else:
        advice = "Put the raw counts into a layer and pass its name as `layer`."
        if others:
            advice = f"None of the other matrices ({', '.join(others)}) holds counts. " + advice
    msg = f"{where} {found}; expected raw counts (whole numbers >= 0). {advice}"
    raise SchemaError(msg)


def holds_counts(X: Matrix) -> bool:
    """Return whether a sample of `X` is finite, not negative and whole; see `check_raw_counts`."""
    return _fault(X) is None


def _fault(X: Matrix) -> str | None:
    """Return what is wrong with the sampled values of `X` in words, or None."""
    if X is None:
        return "is empty (None)"
    return next(filter(None, map(_values_fault, sampled_values(X))), None)


def _values_fault(values: NDArray[Any]) -> str | None:
    kind = values.dtype.kind
    if kind in "bu" or values.size == 0:
        return None
    if kind not in "if":
        return f"has values of type {values.dtype}, which are not numbers"
    if problem := _not_finite(values):
        return problem
    low, high = values.min(), values.max()
    fractional = values[values != np.rint(values)]
    if low < 0:
        guess = " and looks scaled" if fractional.size else ""
        return f"has negative values (lowest found {low:g}){guess}"
    if fractional.size:
        guess = "log-normalised" if high < _LOG_CEILING else "normalised"
        return f"has values that are not whole (such as {fractional[0]:g}) and looks {guess}"
    return None


def _not_finite(values: NDArray[Any]) -> str | None:
    """Return in words how many of the values are NaN or infinite, or None."""
    if values.dtype.kind != "f" or np.isfinite(values.sum(dtype=np.float64)):
        return None
    n_bad = int(np.count_nonzero(~np.isfinite(values)))
    return f"has NaN or infinite values ({n_bad} of {values.size} values read)" if n_bad else None


def sampled_values(X: Matrix, *, whole: bool = False) -> Iterator[NDArray[Any]]:
    """Yield flat blocks of values, spread evenly; only stored values where `X` is sparse.

    `whole`: Yield all of them.
    """
    stored = _stored(X)
    if stored is not None:
        for start, stop in _blocks(int(stored.shape[0]), _BLOCK_ENTRIES, whole=whole):
            yield np.asarray(stored[start:stop])
        return
    rows = max(_BLOCK_ROWS, _ALL_ENTRIES // max(1, int(X.shape[1]))) if whole else _BLOCK_ROWS
    for start, stop in _blocks(int(X.shape[0]), rows, whole=whole):
        block = X[start:stop]
        if hasattr(block, "compute"):  # dask arrays are read block by block
            block = block.compute()
        yield block.data if sparse.issparse(block) else np.asarray(block).ravel()


def _stored(X: Matrix) -> Matrix | None:
    """Return the one-dimensional array of stored values of a sparse `X`, read or backed."""
    if sparse.issparse(X):
        return X.data if X.format in {"csr", "csc", "coo"} else X.tocsr().data
    group = getattr(X, "group", None)  # anndata's backed CSRDataset and CSCDataset
    if group is not None and getattr(X, "format", None) in {"csr", "csc"}:
        return group["data"]
    return None


def _blocks(length: int, size: int, *, whole: bool) -> Iterator[tuple[int, int]]:
    """Yield at most `_BLOCKS` intervals of `size`, spread evenly over `length`, or all of it."""
    size = max(size, _ALL_ENTRIES) if whole and size == _BLOCK_ENTRIES else size
    starts = range(0, length, size)
    if length > _BLOCKS * size and not whole:
        starts = np.linspace(0, length - size, _BLOCKS).astype(int).tolist()
    yield from ((start, min(start + size, length)) for start in starts)


def align_genes(adata: AnnData, genes: Sequence[str]) -> AnnData:
    """Return `adata` with exactly `genes`, in this order.

    scvi-tools compares the number of genes only: reversed genes would pass in silence.

    `adata`: Data with at least these genes; returned as it is when nothing has to change. `genes`:
    Names, in the order of training. Raises `SchemaError`: When genes are missing, or names are not
    unique.
    """
    names = adata.var_names.astype(str)
    if len(names) == len(genes) and (names == np.asarray(genes)).all():
        return adata
    if not names.is_unique:
        twice = names[names.duplicated()][:3].tolist()
        msg = f"Gene names are not unique ({twice}, ...); call `adata.var_names_make_unique()`."
        raise SchemaError(msg)
    place = names.get_indexer(np.asarray(genes))
    missing = np.asarray(genes)[place < 0].tolist()
    if missing:
        msg = (
            f"{len(missing)} of the {len(genes)} genes of training are missing, e.g. "
            f"{missing[:5]}. The model needs all of them; found genes such as "
            f"{names[:3].tolist()}."
        )
        raise SchemaError(msg)
    aligned = adata[:, place]
    return aligned.to_memory() if adata.isbacked else aligned.copy()


#: Share of non-zeros above which whole matrices are multiplied faster than sparse ones.
_MANY = 0.2
#: Rows that are summed at a time.
_CHUNK = 8192


class ScreenReader:
    """Random access to the cells of a registered screen.

    A backed AnnData returns rows sorted by index, whatever order was asked for; here the order
    is kept. Counts come dense, with the places of the non-zeros beside them where the storage
    knows them: the likelihood needs to look at those only.

    `manager`: scvi-tools' manager of a registered AnnData or MuData.
    """

    def __init__(self, manager: AnnDataManager) -> None:
        #: How the data are registered.
        self.registry: Mapping[str, Any] = manager.registry
        columns = {
            key: np.asarray(manager.get_from_registry(key)).reshape(-1)
            for key in manager.data_registry
            if key != Key.X
        }
        self.codes = {
            k: columns[k].astype(np.int64) for k in (Key.CONDITION, Key.CONTEXT, Key.BATCH)
        }
        self.metadata = {k: v for k, v in columns.items() if k.startswith(METADATA_PREFIX)}
        self.n_cells = len(self.codes[Key.CONDITION])
        n_genes = len(manager.get_state_registry(Key.X)["column_names"])
        self.counts = _readable(manager.get_from_registry(Key.X), (self.n_cells, n_genes))
        self.library: np.ndarray | None = None
        if Key.LIBRARY in columns:
            self.library = columns[Key.LIBRARY].astype(np.float32)

    def library_sizes(self) -> np.ndarray:
        """Return the library size of every cell, `(n_cells,)`."""
        if self.library is not None:
            return self.library
        return row_sums(self.counts, self.n_cells).astype(np.float32)

    def __getitem__(self, indices: np.ndarray | list[int] | int) -> Batch:
        """Return the cells at `indices` as a dict of tensors, in this order.

        Returns `X (B, G)` float32; `condition`, `context`, `batch (B,)` int64; `library (B,)`
        float32 (the sum of counts unless registered); `rows`, `columns` of the non-zeros;
        `metadata_<column> (B,)`, int64 codes or float32 numbers.
        """
        chosen = np.atleast_1d(np.asarray(indices, dtype=np.int64))
        return self.completed(self._batch(chosen, read_rows(self.counts, chosen)))

    def __len__(self) -> int:
        """Return the number of cells."""
        return self.n_cells

    @property
    def on_disk(self) -> bool:
        """Whether cells are read fastest in order, many at a time."""
        return isinstance(self.counts, StoredRows)

    def batches(
        self, parts: Sequence[np.ndarray], batch_size: int, *, compressed: bool = False
    ) -> Iterator[Batch]:
        """Yield the cells of each part in batches that are still to be `completed`.

        What is on disk is read a part at a time, the next one meanwhile. If `compressed`, dense
        counts are compressed too.
        """
        if self.on_disk:
            for part, rows in zip(parts, self.counts.parts(parts), strict=True):
                for start in range(0, len(part), batch_size):
                    stop = start + batch_size
                    yield self._batch(part[start:stop], _canonical(rows[start:stop]))
            return
        for part in parts:
            for start in range(0, len(part), batch_size):
                chosen = part[start : start + batch_size]
                rows = read_rows(self.counts, chosen)
                yield self._batch(chosen, sparse.csr_matrix(rows) if compressed else rows)

    def completed(self, batch: Batch, *, compressed: bool = False) -> Batch:
        """Return a batch with dense counts, made on the device that it is on, and library sizes.

        If `compressed`, the counts stay `NON_ZEROS`; where many are not zero, and on devices other
        than CPUs, `X` is there too: it is the faster input then.
        """
        batch = dict(batch)
        if NON_ZEROS[0] in batch:
            values, columns, starts = (batch[name] for name in NON_ZEROS)
            n_cells, n_genes = len(batch[Key.CONDITION]), self.counts.shape[1]
            many = len(values) > _MANY * n_cells * n_genes
            with_dense = not compressed or many or values.device.type != "cpu"
            if not with_dense and Key.LIBRARY in batch:
                return batch
            cells = torch.arange(n_cells, device=values.device)
            rows = cells.repeat_interleave(starts.diff(), output_size=len(values))
            if with_dense:
                dense = values.new_zeros(n_cells * n_genes)
                batch[Key.X] = dense.scatter_(0, rows * n_genes + columns, values).view(-1, n_genes)
            if not compressed:
                batch |= {"rows": rows, "columns": columns.long()}
                del batch["values"], batch["starts"]
            elif Key.LIBRARY not in batch:
                batch[Key.LIBRARY] = values.new_zeros(n_cells).index_add_(0, rows, values)
        if Key.LIBRARY not in batch:
            batch[Key.LIBRARY] = batch[Key.X].sum(dim=1)
        return batch

    def _batch(self, chosen: np.ndarray, rows: Matrix) -> Batch:
        batch: Batch = {k: torch.from_numpy(v[chosen]) for k, v in self.codes.items()}
        for key, values in self.metadata.items():
            column = torch.from_numpy(values[chosen])
            batch[key] = column.float() if column.is_floating_point() else column.long()
        if sparse.issparse(rows):
            parts = (rows.data.astype(np.float32), rows.indices, rows.indptr)
            batch |= dict(zip(NON_ZEROS, map(torch.from_numpy, parts), strict=True))
        else:
            batch[Key.X] = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.float32))
        if self.library is not None:
            batch[Key.LIBRARY] = torch.from_numpy(self.library[chosen])
        return batch


class CompressedCells:
    """The cells of a screen in batches whose counts stay compressed, for modules that take them."""

    def __init__(self, reader: ScreenReader) -> None:
        self.reader = reader

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.reader)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Return the cells at `indices`."""
        (batch,) = self.batches([indices], max(len(indices), 1))
        return self.completed(batch)

    def batches(self, parts: Sequence[np.ndarray], batch_size: int) -> Iterator[Batch]:
        """Yield the cells of each part in batches that are still to be `completed`."""
        return self.reader.batches(parts, batch_size, compressed=True)

    def completed(self, batch: Batch) -> Batch:
        """Return a batch as the module takes it."""
        return self.reader.completed(batch, compressed=True)

    def on(self, device: torch.device) -> BatchSource:
        """Return the cells as a source on a device, or themselves where there is no room.

        Half of the free memory is left to the training.
        """
        counts = self.reader.counts
        if not sparse.issparse(counts):
            return self
        size = 8 * counts.nnz + 4 * counts.shape[0]
        if device.type == "cuda" and size > torch.cuda.mem_get_info(device)[0] // 2:
            return self
        return ResidentCells(self.reader, device)


class ResidentCells:
    """The cells of a screen on a device: a batch is put together there, and nothing is moved."""

    def __init__(self, reader: ScreenReader, device: torch.device) -> None:
        counts = _canonical(reader.counts.tocsr(copy=True))
        self.device, self._lengths = device, np.diff(counts.indptr)
        self.values = torch.from_numpy(counts.data.astype(np.float32)).to(device)
        self.columns = torch.from_numpy(counts.indices.astype(np.int32)).to(device)
        self.starts = torch.from_numpy(counts.indptr.astype(np.int64)).to(device)
        fields: Batch = {k: torch.from_numpy(v) for k, v in reader.codes.items()}
        fields[Key.LIBRARY] = torch.from_numpy(reader.library_sizes())
        self.fields = {name: field.to(device) for name, field in fields.items()}

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self._lengths)

    def __getitem__(self, indices: np.ndarray) -> Batch:
        """Return the cells at `indices`, still to be `completed`."""
        # The host knows how long the result is, so that it need not ask.
        n_values = int(self._lengths[indices].sum())
        rows = torch.from_numpy(indices).to(self.device, non_blocking=True)
        batch = {name: field.index_select(0, rows) for name, field in self.fields.items()}
        first, last = self.starts[rows], self.starts[rows + 1]
        starts = torch.zeros(len(rows) + 1, dtype=torch.int64, device=self.device)
        torch.cumsum(last - first, 0, out=starts[1:])
        place = torch.arange(n_values, device=self.device)
        shift = torch.repeat_interleave(first - starts[:-1], last - first, output_size=n_values)
        at = place.add_(shift)
        found = (self.values.index_select(0, at), self.columns.index_select(0, at), starts)
        return batch | dict(zip(NON_ZEROS, found, strict=True))


def read_rows(matrix: Any, indices: np.ndarray) -> Any:  # noqa: ANN401 - any array-like storage
    """Return `matrix[indices]` in the order of `indices`, also from storage that must be sorted.

    `matrix`: NumPy array, SciPy sparse matrix, or a backed dataset of either kind. `indices`: Row
    numbers, in any order, with repetitions.
    """
    if isinstance(matrix, np.ndarray | StoredRows) or sparse.issparse(matrix):
        rows = matrix[indices]
    else:
        unique, inverse = np.unique(indices, return_inverse=True)
        rows = matrix[unique][inverse]
    return _canonical(rows.tocsr()) if sparse.issparse(rows) else rows


def _canonical(rows: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return rows of a copy without stored zeros, columns in order."""
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows


def row_sums(matrix: Any, n_rows: int) -> np.ndarray:  # noqa: ANN401 - as `read_rows`
    """Return the sum of each row, `(n_rows,)` float64, of any storage that `read_rows` reads."""
    parts = np.array_split(np.arange(n_rows), max(1, n_rows // _CHUNK))
    sums = [np.asarray(read_rows(matrix, rows).sum(axis=1)).ravel() for rows in parts]
    return np.concatenate(sums).astype(np.float64)


class _RowMatrix:
    """Rows of a matrix that cannot say its shape: scvi-tools' layer of a collection of files."""

    def __init__(self, matrix: Any, shape: tuple[int, int]) -> None:  # noqa: ANN401
        self.matrix, self.shape = matrix, shape

    def __getitem__(self, indices: np.ndarray) -> sparse.csr_matrix:
        return self.matrix[indices]


def _readable(matrix: Any, shape: tuple[int, int]) -> Any:  # noqa: ANN401
    """Column-compressed counts are turned once: reading rows from them would scan all."""
    if is_stored_csr(matrix):
        return StoredRows(matrix)
    if isinstance(matrix, pd.DataFrame):
        return matrix.to_numpy()
    if not sparse.issparse(matrix):
        return matrix
    if not hasattr(matrix, "shape"):
        return _RowMatrix(matrix, shape)
    return matrix if matrix.format == "csr" else matrix.tocsr()


@checked
def read_screen(path: str | PathLike[str]) -> AnnData:
    """Read an `.h5ad` file, or a folder of zarr, into memory.

    Parameters
    ----------
    path
        The file or folder.

    Raises
    ------
    FileNotFoundError
        If there is none.
    SchemaError
        If it cannot be read: it is cut off, or of another format; the line that converts the usual
        ones is named.
    """
    return _read(Path(path), backed=False)


def open_backed(path: str | PathLike[str]) -> AnnData:
    """Open an `.h5ad` file, or a folder of zarr, with matrices left on disk; see `read_screen`."""
    return _read(Path(path), backed=True)


def _read(path: Path, *, backed: bool) -> AnnData:
    import anndata

    is_zarr = any(is_file(path / name) for name in (".zgroup", "zarr.json"))
    if not is_file(path) and not is_zarr and not path.is_dir():
        msg = f"There is no file {path}."
        raise FileNotFoundError(msg)
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    if not is_zarr and (path.is_dir() or suffix.lower() in CONVERSIONS):
        msg = f"{path} is no .h5ad file; {how_to_read(path)}"
        raise SchemaError(msg)
    if is_zarr and backed:
        return open_shards(path)
    try:
        backing = "r" if backed else None
        adata = anndata.read_zarr(path) if is_zarr else anndata.read_h5ad(path, backed=backing)
    except Exception as error:  # anndata raises what HDF5, NumPy and pandas raise
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        msg = (
            f"{path} could not be read as {'zarr' if is_zarr else '.h5ad'}: it may be cut off or "
            f"not be an AnnData file; copy or download it again. The reason given: {reason}"
        )
        raise SchemaError(msg) from error
    if is_zarr:
        check_shards(path, adata)
    return adata
