"""Predicted effects as a table: which genes move, how far, how sure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb._errors import SchemaError

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

_LAYERS: Final = ("lfc", "lower", "upper", "std")


def effects(predicted: AnnData, *, n_genes: int | None = 20) -> pd.DataFrame:
    """Return predicted effects as a table, the largest of each condition first.

    Parameters
    ----------
    predicted
        From :meth:`~scvi_perturb.model.PerturbDiffusion.predict`.
    n_genes
        Genes a condition, those with the largest absolute effect; None for all.

    Returns
    -------
    pandas.DataFrame
        One row a condition and gene: what `obs` says of the condition; `gene`; `lfc`, the change
        from control (natural log); `lower`, `upper` and `std`; `mean`, the predicted profile.

    Raises
    ------
    SchemaError
        When the layers are missing.
    ValueError
        When fewer than one gene is asked for.
    """
    missing = [layer for layer in _LAYERS if layer not in predicted.layers]
    if missing:
        msg = f"Layers {missing} are missing; pass what `model.predict` returns."
        raise SchemaError(msg)
    if n_genes is not None and n_genes < 1:
        msg = f"n_genes={n_genes}; ask for at least 1, or None for all."
        raise ValueError(msg)
    order = np.argsort(-np.abs(predicted.layers["lfc"]), axis=1, kind="stable")[:, :n_genes]
    row = np.repeat(np.arange(predicted.n_obs), order.shape[1])
    table = predicted.obs.iloc[row].reset_index(drop=True)
    table["gene"] = predicted.var_names.to_numpy()[order.ravel()]
    for layer in _LAYERS:
        table[layer] = np.asarray(predicted.layers[layer])[row, order.ravel()]
    table["mean"] = np.asarray(predicted.X)[row, order.ravel()]
    return table
