"""Are these raw counts? Asked of a bounded sample, so that it costs the same on any screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from scipy import sparse

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["check_raw_counts", "holds_counts"]

#: An array, a SciPy sparse matrix, or a backed dataset: no common type is there to name.
Matrix: TypeAlias = Any

_BLOCKS = 16
_BLOCK_ROWS = 32
_BLOCK_ENTRIES = 16_384
#: Largest value that `log1p` of a per-ten-thousand profile, or of any library, plausibly takes.
_LOG_CEILING = 30.0


def check_raw_counts(X: Matrix, *, where: str, layers: Mapping[str, Matrix] | None = None) -> None:
    """Raise unless a matrix holds raw counts: finite, not negative, whole numbers.

    A bounded sample is read (16 blocks spread over the matrix, at most about 260,000 stored
    values of a sparse one or 512 rows of a dense one), so the cost does not grow with the
    number of cells; a fault outside the sample is not seen.

    Parameters
    ----------
    X
        Matrix `(n_cells, n_genes)`: an array, a SciPy sparse matrix (CSR, CSC), or a backed
        dataset of HDF5 or zarr, dense or sparse.
    where
        What `X` is, for the message, such as ``"adata.X"``.
    layers
        Other matrices, as `adata.layers`. When `X` fails and one of these holds counts, the
        message says to pass it. The key ``"X"`` stands for `adata.X`, that is ``layer=None``.

    Raises
    ------
    SchemaError
        If the sample has NaN, infinite, negative or non-integer values, or is not numeric.
    """
    found = _fault(X)
    if found is None:
        return
    holding = [name for name, layer in (layers or {}).items() if holds_counts(layer)]
    if holding:
        names = ", ".join("None (adata.X)" if name == "X" else repr(name) for name in holding)
        advice = f"Counts are elsewhere in these data: pass layer={names}."
    else:
        advice = "Put the raw counts into a layer and pass its name as `layer`."
        if layers:
            advice = f"None of the other matrices ({', '.join(layers)}) holds counts. " + advice
    msg = f"{where} {found}; expected raw counts (whole numbers >= 0). {advice}"
    raise SchemaError(msg)


def holds_counts(X: Matrix) -> bool:
    """Return whether a sample of `X` is finite, not negative and whole; see `check_raw_counts`."""
    return _fault(X) is None


def _fault(X: Matrix) -> str | None:
    """Return what is wrong with the sampled values of `X` in words, or None."""
    if X is None:
        return "is empty (None)"
    for values in _sampled_values(X):
        fault = _values_fault(values)
        if fault is not None:
            return fault
    return None


def _values_fault(values: NDArray[Any]) -> str | None:
    kind = values.dtype.kind
    if kind in "bu" or values.size == 0:
        return None
    if kind not in "if":
        return f"has values of type {values.dtype}, which are not numbers"
    if kind == "f":
        n_bad = int(np.count_nonzero(~np.isfinite(values)))
        if n_bad:
            return f"has NaN or infinite values ({n_bad} of {values.size} sampled)"
    low, high = values.min(), values.max()
    fractional = values[values != np.rint(values)] if kind == "f" else values[:0]
    if low < 0:
        guess = " and looks scaled" if fractional.size else ""
        return f"has negative values (lowest found {low:g}){guess}"
    if fractional.size:
        guess = "log-normalised" if high < _LOG_CEILING else "normalised"
        return f"has values that are not whole (such as {fractional[0]:g}) and looks {guess}"
    return None


def _sampled_values(X: Matrix) -> Iterator[NDArray[Any]]:
    """Yield flat blocks of values, spread evenly; only stored values where `X` is sparse."""
    stored = _stored(X)
    if stored is not None:
        for start, stop in _blocks(int(stored.shape[0]), _BLOCK_ENTRIES):
            yield np.asarray(stored[start:stop])
        return
    for start, stop in _blocks(int(X.shape[0]), _BLOCK_ROWS):
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


def _blocks(length: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield at most `_BLOCKS` intervals of at most `size`, spread evenly over `length`."""
    if length <= _BLOCKS * size:
        yield from ((start, min(start + size, length)) for start in range(0, length, size))
        return
    for start in np.linspace(0, length - size, _BLOCKS).astype(int).tolist():
        yield start, start + size
