"""Reference cells: the controls that a request starts from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from scvi_perturb._core import (
    BATCH_KEY,
    CONDITION_KEY,
    CONTEXT_KEY,
    LIBRARY_KEY,
    X_KEY,
    SchemaError,
)
from scvi_perturb.data.condition import as_labels, distinct_rows
from scvi_perturb.data.fields import encode_labels
from scvi_perturb.data.reader import (
    ScreenReader,
    align_genes,
    check_adata,
    check_mudata,
    check_raw_counts,
    other_matrices,
    read_rows,
    row_sums,
)

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

    from scvi_perturb._core import Batch
    from scvi_perturb.data.request import Request
    from scvi_perturb.data.screen import Screen


@dataclass(slots=True)
class Reference:
    """Control cells to start from.

    `counts`: Raw counts, `(n_cells, n_genes)`, any row-readable storage. `library`: Library sizes,
    `(n_cells,)`. `context`, `batch`: Codes of training, `(n_cells,)`; labels never trained on have
    later codes. `labels`: Context columns and batch as text, one row a cell; index = names of the
    cells. `is_given`: Whether they are the user's, and not the training controls.
    """

    counts: object
    library: np.ndarray
    context: np.ndarray
    batch: np.ndarray
    labels: pd.DataFrame
    is_given: bool = False

    def __len__(self) -> int:
        """Return the number of cells."""
        return len(self.library)

    def read(self, rows: np.ndarray) -> Batch:
        """Return the cells at `rows` as a batch."""
        counts = read_rows(self.counts, rows)
        dense = counts.toarray() if sparse.issparse(counts) else np.asarray(counts)
        return {
            X_KEY: torch.from_numpy(np.ascontiguousarray(dense, dtype=np.float32)),
            LIBRARY_KEY: torch.from_numpy(self.library[rows].astype(np.float32)),
            CONTEXT_KEY: torch.from_numpy(self.context[rows]),
            BATCH_KEY: torch.from_numpy(self.batch[rows]),
            CONDITION_KEY: torch.zeros(len(rows), dtype=torch.long),
        }

    def profile(self, rows: np.ndarray) -> np.ndarray:
        """Return the proportions of the summed counts of `rows`, `(n_genes,)`."""
        counts = read_rows(self.counts, rows)
        total = np.asarray(counts.sum(axis=0), dtype=np.float64).ravel()
        return total / self.library[rows].sum()

    def rows_for(self, request: Request, row: int) -> np.ndarray:
        """Return the cells that answer a row of a request.

        Raises `SchemaError`: When no control cell is in the context asked for.
        """
        keep = np.ones(len(self), dtype=bool)
        for column, label in request.where(row).items():
            if column in self.labels:
                keep &= self.labels[column].to_numpy() == label
        if not keep.any():
            found = self.labels.drop_duplicates().head(5).to_dict(orient="records")
            msg = (
                f"No control cell is in the context {request.where(row)}; there are controls in "
                f"{found}, ... Pass control cells of that context as `reference=`."
            )
            raise SchemaError(msg)
        return np.flatnonzero(keep)


def reference_from_screen(
    reader: ScreenReader, rows: np.ndarray, screen: Screen, names: pd.Index
) -> Reference:
    """Return control cells `rows` of the registered screen."""
    context, batch = reader.codes[CONTEXT_KEY][rows], reader.codes[BATCH_KEY][rows]
    labels = pd.DataFrame(index=names[rows])
    for i, column in enumerate(screen.keys.context):
        labels[column] = [screen.contexts[code][i] for code in context]
    if screen.keys.batch is not None:
        labels[screen.keys.batch] = [screen.batches[code][0] for code in batch]
    counts = read_rows(reader.counts, rows)
    library = row_sums(counts, len(rows)) if reader.library is None else reader.library[rows]
    return Reference(counts, library, context, batch, labels)


def reference_from_adata(adata: AnnData | MuData, screen: Screen) -> Reference:
    """Return the cells of new data, which need not be registered.

    Raises `SchemaError`: When genes are missing, counts are not raw, cells are not all controls, or
    there is no library size where the model needs one.
    """
    if screen.rna_modality is not None and hasattr(adata, "mod"):
        check_mudata(adata, screen.rna_modality)
        adata = adata.mod[screen.rna_modality]
    check_adata(adata, "reference")
    adata = align_genes(adata, screen.genes)
    if adata.n_obs == 0:
        msg = "The reference has no cells; pass at least one control cell."
        raise SchemaError(msg)
    if screen.keys.layer is not None and screen.keys.layer not in adata.layers:
        msg = f"The reference has no layer {screen.keys.layer!r}; it has {sorted(adata.layers)}."
        raise SchemaError(msg)
    counts = adata.X if screen.keys.layer is None else adata.layers[screen.keys.layer]
    check_raw_counts(counts, where="the reference", layers=other_matrices(adata))
    _check_controls(adata.obs, screen)
    columns = [c for c in (*screen.keys.context, screen.keys.batch) if c in adata.obs]
    labels = pd.DataFrame(
        {c: as_labels(adata.obs[c], missing="nan") for c in columns}, index=adata.obs_names
    )
    return Reference(
        counts,
        _library(adata, counts, screen),
        _codes(labels, screen.keys.context, screen.contexts),
        _codes(labels, () if screen.keys.batch is None else (screen.keys.batch,), screen.batches),
        labels,
        is_given=True,
    )


def _check_controls(obs: pd.DataFrame, screen: Screen) -> None:
    column = screen.keys.perturbation
    if column not in obs:
        return
    keys = replace(screen.keys, dose=None, time=None, kind=None)
    rows, inverse = distinct_rows(obs, keys)
    treated = np.array([not keys.parse(**row).is_control for row in rows])[inverse]
    if treated.any():
        msg = (
            f"The reference must be control cells, but {int(treated.sum())} of {len(obs)} have a "
            f"{column!r} other than {screen.keys.control!r}, e.g. "
            f"{str(obs[column].iloc[np.argmax(treated)])!r}. Pass the controls alone."
        )
        raise SchemaError(msg)


def _library(adata: AnnData, counts: object, screen: Screen) -> np.ndarray:
    if screen.keys.library is None:
        library = row_sums(counts, adata.n_obs)
    elif screen.keys.library in adata.obs:
        library = adata.obs[screen.keys.library].to_numpy(dtype=np.float64)
    else:
        msg = f"The reference needs the library sizes of training, obs[{screen.keys.library!r}]."
        raise SchemaError(msg)
    if not (library > 0).all():
        n = int((~(library > 0)).sum())
        msg = f"{n} reference cells have no counts; drop them."
        raise SchemaError(msg)
    return library


def _codes(
    labels: pd.DataFrame, columns: tuple[str, ...], levels: tuple[tuple[str, ...], ...]
) -> np.ndarray:
    """Return the codes of training; cells without the columns count as unknown."""
    if not columns:
        return np.zeros(len(labels), dtype=np.int64)
    if any(column not in labels for column in columns):
        return np.full(len(labels), len(levels), dtype=np.int64)
    return encode_labels(labels, columns, list(levels))[0]
