"""Genes by name: new data are brought into the order of training."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

__all__ = ["align_genes"]


def align_genes(adata: AnnData, genes: Sequence[str]) -> AnnData:
    """Return `adata` with exactly `genes`, in this order.

    scvi-tools compares the number of genes only: reversed genes would pass in silence.

    Parameters
    ----------
    adata
        Data with at least these genes; returned as it is when nothing has to change.
    genes
        Names, in the order of training.

    Raises
    ------
    SchemaError
        When genes are missing, or names are not unique.
    """
    names = adata.var_names.astype(str)
    if len(names) == len(genes) and (names == np.asarray(genes)).all():
        return adata
    if not names.is_unique:
        twice = names[names.duplicated()][:3].tolist()
        msg = f"Gene names are not unique ({twice}, ...); call `adata.var_names_make_unique()`."
        raise SchemaError(msg)
    place = names.get_indexer(np.asarray(genes))
    missing = [gene for gene, i in zip(genes, place, strict=True) if i < 0]
    if missing:
        msg = (
            f"{len(missing)} of the {len(genes)} genes of training are missing, e.g. "
            f"{missing[:5]}. The model needs all of them; found genes such as "
            f"{names[:3].tolist()}."
        )
        raise SchemaError(msg)
    aligned = adata[:, place]
    return aligned.to_memory() if adata.isbacked else aligned.copy()
