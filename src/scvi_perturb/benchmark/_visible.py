"""What may be seen: a screen without its held-out cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.data import ConditionKeys, Split
from scvi_perturb.data._annotation import data_hash, read_annotation

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["annotation_of", "bare", "visible_part"]


def visible_part(adata: AnnData, split: Split, layer: str | None) -> tuple[AnnData, Split]:
    """Return the cells that are not held out, and the split of these.

    Nothing else of the screen is in it: the values named, the columns of conditions and contexts,
    and names. So a method cannot read what it is asked to predict, neither values nor numbers of
    cells, nor what was computed from them (`uns`, `varm`, other layers), whatever it does with
    the split.
    """
    seen = np.sort(np.concatenate([split.train, split.validation]))
    visible = bare(adata, split, seen, layer)
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


def bare(adata: AnnData, split: Split, rows: NDArray[np.int64], layer: str | None) -> AnnData:
    """Return rows of a screen with the values, columns and names that a task is about."""
    keys = ConditionKeys(**split.parameters["keys"])
    columns = [*keys.columns.values(), *split.parameters["context_keys"]]
    values = matrix_of(adata, layer)[rows]
    made = AnnData(
        obs=adata.obs.iloc[rows][list(dict.fromkeys(columns))].copy(),
        var=pd.DataFrame(index=adata.var_names.astype(str)),
    )
    if layer is None:
        made.X = values
    else:
        made.layers[layer] = values
    return made


def annotation_of(adata: AnnData, perturbation_key: str) -> AnnData:
    """Return what may be known of perturbations beforehand: text, one row a perturbation.

    Columns of numbers, and those that differ between the cells of a perturbation, are measurements
    and are left out.
    """
    obs = adata.obs.select_dtypes(exclude="number")
    groups = obs.astype(str).groupby(obs[perturbation_key].astype(str), sort=True)
    kept = [name for name, n in groups.nunique().max().items() if n <= 1]
    table = groups[kept].first()
    return AnnData(obs=table.set_axis(table.index.astype(str)))
