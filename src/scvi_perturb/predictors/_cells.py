"""Cells as predictors take them: which may be seen, their counts, and the order of genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from scvi_perturb._errors import SchemaError
from scvi_perturb.data._align import align_genes
from scvi_perturb.data._counts import check_raw_counts

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data._splits import Split

__all__ = ["aligned_counts", "counts_of", "seen_cells"]


def seen_cells(adata: AnnData, split: Split | None) -> NDArray[np.int64]:
    """Return the cells that may be seen, in the order of the file: training and validation.

    What has nothing to tune needs no validation cells and learns from them too.
    """
    if split is None:
        return np.arange(adata.n_obs)
    split.check(adata)
    return np.sort(np.concatenate([split.train, split.validation])).astype(np.int64)


def counts_of(adata: AnnData, layer: str | None, *, what: str = "adata") -> Any:  # noqa: ANN401
    """Return the raw counts of a screen, `(n_cells, n_genes)`; a backed file is not read yet.

    Parameters
    ----------
    adata
        Cells.
    layer
        Where the counts are; None is `X`.
    what
        What `adata` is, for messages.

    Raises
    ------
    SchemaError
        If there is no such layer, or it does not hold raw counts.
    """
    if layer is not None and layer not in adata.layers:
        msg = f"{what} has no layer {layer!r}; found {sorted(adata.layers)}."
        raise SchemaError(msg)
    held = {"X": adata.X} | {name: adata.layers[name] for name in adata.layers}
    counts = held.pop(layer or "X")
    where = f"{what}.X" if layer is None else f"{what}.layers[{layer!r}]"
    check_raw_counts(counts, where=where, layers=held)
    # Rows of column-compressed counts can only be read by scanning all of them.
    return counts.tocsr() if sparse.issparse(counts) and counts.format != "csr" else counts


def aligned_counts(adata: AnnData, layer: str | None, genes: pd.Index) -> Any:  # noqa: ANN401
    """Return the counts of reference cells, with the genes in the order of training.

    Raises
    ------
    SchemaError
        If a gene of training is absent, a name comes twice, or counts are not raw.
    """
    return counts_of(align_genes(adata, list(genes)), layer, what="reference")[:]
