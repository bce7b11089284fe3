"""What may be seen: a screen without its held-out cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.data import ConditionKeys, Split
from scvi_perturb.data._annotation import data_hash, read_annotation

if TYPE_CHECKING:
    from anndata import AnnData

__all__ = ["visible_part"]


def visible_part(adata: AnnData, split: Split) -> tuple[AnnData, Split]:
    """Return the cells that are not held out, and the split of these.

    A method that is fitted on them cannot read what it is asked to predict, neither values nor
    numbers of cells, whatever it does with the split.
    """
    seen = np.sort(np.concatenate([split.train, split.validation]))
    visible = adata[seen].copy()
    for column in visible.obs.select_dtypes("category"):
        visible.obs[column] = visible.obs[column].cat.remove_unused_categories()
    keys = ConditionKeys(**split.parameters["keys"])
    annotation = read_annotation(visible, keys, split.parameters["context_keys"])
    held_out = tuple({**row, "n_cells": None} for row in split.held_out)
    made = Split(
        kind=split.kind,
        seed=split.seed,
        train=np.flatnonzero(np.isin(seen, split.train)),
        validation=np.flatnonzero(np.isin(seen, split.validation)),
        test=np.zeros(0, np.int64),
        held_out=held_out,
        parameters=split.parameters,
        data_hash=data_hash(visible, annotation),
    )
    return visible, made
