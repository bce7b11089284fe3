"""Conditions in the order of the size of their effects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData


@checked
def rank_effects(
    predicted: AnnData,
    *,
    by: Literal["norm", "norm_lower", "n_genes"] = "norm",
    threshold: float = 0.0,
) -> pd.DataFrame:
    """Return conditions by the size of their effect, the largest first.

    Parameters
    ----------
    predicted
        What `predict` of a model or of a predictor returns.
    by
        Column that orders: "norm"; "norm_lower", by which a condition with a wide interval does not
        lead by chance; "n_genes". Ties keep their order.
    threshold
        A gene counts in `n_genes` where its interval lies beyond this change on one side of 0,
        natural log.

    Returns
    -------
    pandas.DataFrame
        One row a condition: `rank`, from 1; what `obs` says of it; `norm`, the root of the sum over
        genes of squared `lfc` (natural log); `norm_lower` and `norm_upper`, the smallest and the
        largest norm of effects that lie in the intervals of all genes; `n_genes`, how many
        intervals exclude 0, `n_up` and `n_down` by direction; `top_gene`, of the largest absolute
        `lfc`, and `top_lfc`. Where there are no intervals, these columns are NaN.

    Raises
    ------
    SchemaError
        When the layer `lfc` is missing, or the intervals are and the order asks for them.
    """
    if "lfc" not in predicted.layers:
        msg = "The layer 'lfc' is missing; pass what `predict` returns."
        raise SchemaError(msg)
    lfc = np.asarray(predicted.layers["lfc"], np.float64)
    if {"lower", "upper"} <= {*predicted.layers}:
        lower, upper = (np.asarray(predicted.layers[x], np.float64) for x in ("lower", "upper"))
    else:
        lower = upper = np.full_like(lfc, np.nan)
    known = np.isfinite(lower).all(axis=1) & np.isfinite(upper).all(axis=1)
    if by != "norm" and not known.any():
        msg = f"by={by!r} needs intervals, and there are none; rank by 'norm'."
        raise SchemaError(msg)
    nearest = np.maximum(np.maximum(lower, -upper), 0.0)
    farthest = np.maximum(np.abs(lower), np.abs(upper))
    top = np.abs(lfc).argmax(axis=1)
    up, down = (lower > threshold).sum(axis=1), (upper < -threshold).sum(axis=1)
    table = predicted.obs.copy()
    table["norm"] = np.linalg.norm(lfc, axis=1)
    counted = {"n_genes": up + down, "n_up": up, "n_down": down}
    norms = {"norm_lower": nearest, "norm_upper": farthest}
    of_intervals = {name: np.linalg.norm(box, axis=1) for name, box in norms.items()} | counted
    for name, values in of_intervals.items():
        table[name] = np.where(known, values, np.nan)
    table["top_gene"] = predicted.var_names.to_numpy()[top]
    table["top_lfc"] = lfc[np.arange(len(lfc)), top]
    table = table.sort_values(by, ascending=False, kind="stable").reset_index(drop=True)
    table.insert(0, "rank", np.arange(1, len(table) + 1))
    return table
