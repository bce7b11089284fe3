"""Cells as predictors take them: which may be seen, their counts, and the order of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from scipy import sparse

from scvi_perturb._errors import SchemaError
from scvi_perturb.data._align import align_genes
from scvi_perturb.data._counts import check_raw_counts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._splits import Split

__all__ = ["aligned_counts", "check_effects", "read_chunks", "read_counts", "seen_cells"]

#: Cells that are read at a time.
CHUNK: Final = 16_384


def seen_cells(adata: AnnData, split: Split | None) -> NDArray[np.int64]:
    """Return the cells that may be seen, in the order of the file: training and validation.

    What has nothing to tune needs no validation cells and learns from them too.
    """
    if split is None:
        return np.arange(adata.n_obs)
    split.check(adata)
    return np.sort(np.concatenate([split.train, split.validation])).astype(np.int64)


def read_chunks(
    adata: AnnData,
    layer: str | None,
    cells: NDArray[np.int64],
    *,
    effects: bool = False,
    what: str = "adata",
) -> Iterator[tuple[slice, Any]]:
    """Read some cells in turn, and check them; the values of no other cell are looked at.

    Parameters
    ----------
    adata
        A screen; in memory, backed, or a collection of files.
    layer
        Where the values are; None is `X`.
    cells
        Rows to read, sorted.
    effects
        Whether the rows are changes from control, which need only be finite, and not raw counts.
    what
        What `adata` is, for messages.

    Yields
    ------
    A slice of `cells` and its rows, `(n, n_genes)`, an array or CSR.

    Raises
    ------
    SchemaError
        If there is no such layer, or the rows are not what they should be.
    """
    held = {"X": adata.X} if hasattr(adata, "X") else {}
    held |= {name: adata.layers[name] for name in adata.layers.keys()}  # noqa: SIM118
    if layer is not None and layer not in held:
        msg = f"{what} has no layer {layer!r}; found {sorted(held.keys() - {'X'})}."
        raise SchemaError(msg)
    values = held.pop(layer or "X", _OfFiles(adata))
    where = f"{what}.X" if layer is None else f"{what}.layers[{layer!r}]"
    if values is None:
        msg = f"{where} is empty (None); put the values there, or pass `layer`."
        raise SchemaError(msg)
    # Rows of column-compressed counts can only be read by scanning all of them.
    if sparse.issparse(values) and values.format != "csr":
        values = values.tocsr()
    for start in range(0, len(cells), CHUNK):
        part = slice(start, start + CHUNK)
        rows = values[cells[part]]
        if effects:
            check_effects(rows, where=where, names=adata.obs_names[cells[part]])
        else:
            check_raw_counts(rows, where=where, layers=held)
        yield part, rows


class _OfFiles:
    """Rows of `X` of a collection of files, which has no `X` of its own."""

    def __init__(self, collection: Any) -> None:  # noqa: ANN401
        self._collection = collection

    def __getitem__(self, rows: NDArray[np.int64]) -> Any:  # noqa: ANN401
        return self._collection[rows].X


def read_counts(
    adata: AnnData, layer: str | None, cells: NDArray[np.int64], *, what: str = "adata"
) -> Any:  # noqa: ANN401
    """Return the raw counts of some cells, `(n_cells, n_genes)`; see `read_chunks`."""
    parts = [rows for _, rows in read_chunks(adata, layer, cells, what=what)]
    if len(parts) == 1:
        return parts[0]
    if not parts:
        return sparse.csr_matrix((0, adata.n_vars))
    stack = sparse.vstack if sparse.issparse(parts[0]) else np.concatenate
    return sparse.csr_matrix(stack(parts)) if sparse.issparse(parts[0]) else stack(parts)


def check_effects(rows: Any, *, where: str, names: pd.Index) -> None:  # noqa: ANN401
    """Raise unless all values are finite numbers.

    Parameters
    ----------
    rows
        Changes from control, `(n, n_genes)`, an array or CSR.
    where
        What they are, for the message.
    names
        Of the rows.

    Raises
    ------
    SchemaError
        Naming the first row that has NaN or an infinite value.
    """
    data = rows.data if sparse.issparse(rows) else np.asarray(rows)
    if data.dtype.kind not in "buif":
        msg = f"{where} has values of type {data.dtype}, which are not numbers."
        raise SchemaError(msg)
    wrong = ~np.isfinite(data)
    if not wrong.any():
        return
    if sparse.issparse(rows):
        bad = np.unique(np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))[wrong])
    else:
        bad = np.flatnonzero(wrong.any(axis=1))
    msg = (
        f"{where} has NaN or infinite values in {len(bad)} rows, the first {names[bad[0]]!r}; "
        "expected finite changes from control. Drop these rows or the genes that were not "
        "measured, or fill the gaps in."
    )
    raise SchemaError(msg)


def aligned_counts(adata: AnnData, layer: str | None, genes: pd.Index) -> Any:  # noqa: ANN401
    """Return the counts of reference cells, with the genes in the order of training.

    Raises
    ------
    SchemaError
        If a gene of training is absent, a name comes twice, or counts are not raw.
    """
    aligned = align_genes(adata, list(genes))
    return read_counts(aligned, layer, np.arange(adata.n_obs), what="reference")
