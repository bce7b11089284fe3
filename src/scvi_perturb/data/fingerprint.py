"""One fingerprint of a screen, by which a split, a run and a model know their data again."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb.data.condition import Condition
from scvi_perturb.data.fields import Annotation, encode_labels, is_numeric, read_annotation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData

    from scvi_perturb.data.condition import ScreenKeys

#: Of data of which no column says a condition.
WITHOUT_CONDITIONS: Final = Annotation(
    np.zeros(0, np.int64), pd.DataFrame({"context": [0]}), (Condition(),), ({},)
)
#: Values that are hashed at a time, those that are zero counted.
_BLOCK: Final = 1 << 22


def data_hash(
    adata: AnnData,
    keys: ScreenKeys,
    *,
    annotation: Annotation | None = None,
    columns: Iterable[str] = (),
    counts: object = None,
) -> str:
    """Return a fingerprint of the content of a screen, as 64 hex digits.

    It depends on counts, genes, cells and their order, on conditions, contexts, batches and library
    sizes, and on further `columns`; not on whether counts are sparse, dense or on disk, whether a
    column is text, categorical or integer, nor on the order of components in a label. Values are
    compared in single precision, as models read them. Memory does not grow with the number of
    cells. `annotation` and `counts` are those of the data by these keys, if they were read before.

    Raises `SchemaError`: If a column of the keys is absent, or a label is missing.
    """
    digest = hashlib.sha256(repr(adata.shape).encode())
    for names in (adata.obs_names, adata.var_names):
        digest.update("\x1f".join(map(str, names)).encode() + b"\x1e")
    found = read_annotation(adata, keys) if annotation is None else annotation
    for condition, context in zip(found.conditions, found.groups["context"], strict=True):
        parts = [(part.name, part.dose, part.kind) for part in condition.components]
        labels = sorted(found.contexts[context].items())
        digest.update(repr((parts, condition.time, labels)).encode())
    digest.update(found.group.astype("<i8").tobytes())
    for column in (keys.batch, keys.library, *columns):
        if column is not None and column in adata.obs:
            for part in _column(adata, column):
                digest.update(part)
    if counts is None:
        counts = adata.X if keys.layer is None else adata.layers[keys.layer]
    for part in _counts(counts, adata.shape):
        digest.update(part)
    return digest.hexdigest()


def _column(adata: AnnData, column: str) -> Iterator[Any]:
    values = adata.obs[column]
    yield f"\x1e{column}".encode()
    if is_numeric(values) and values.dtype.kind == "f":
        yield values.to_numpy("<f8")
        return
    codes, levels = encode_labels(adata.obs, (column,), [])
    yield repr(levels).encode()
    yield codes.astype("<i8")


def _counts(matrix: Any, shape: tuple[int, int]) -> Iterator[Any]:  # noqa: ANN401
    """Yield lengths, places and values of the rows of the counts, block by block."""
    if matrix is None:
        return
    if sparse.issparse(matrix) and getattr(matrix, "format", "csr") != "csr":
        matrix = matrix.tocsr()
    n_rows = max(1, _BLOCK // max(1, shape[1]))
    for start in range(0, shape[0], n_rows):
        rows = _block(matrix[start : start + n_rows])
        yield np.diff(rows.indptr).astype("<i4")
        yield rows.indices.astype("<i4", copy=False)
        yield rows.data.astype("<f4", copy=False)


def _block(block: Any) -> sparse.csr_matrix:  # noqa: ANN401 - any storage
    """Return rows as CSR in one form; those of the data themselves are not touched."""
    if hasattr(block, "compute"):  # dask arrays are read block by block
        block = block.compute()
    rows = sparse.csr_matrix(block)
    if not rows.has_canonical_format or not rows.data.all():
        rows = rows.copy()
        rows.sum_duplicates()
        rows.eliminate_zeros()
    return rows
