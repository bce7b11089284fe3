"""Effects as tables, and scores of cells by a trained model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from anndata import AnnData

from scvi_perturb._checks import checked
from scvi_perturb._core import UNS_KEY, SchemaError
from scvi_perturb._version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd

    from scvi_perturb.model.diffusion import PerturbDiffusion


_LAYERS: Final = ("lfc", "lower", "upper", "std")


@checked
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
    order = np.argsort(-np.abs(predicted.layers["lfc"]), axis=1, kind="stable")[:, :n_genes]
    row = np.repeat(np.arange(predicted.n_obs), order.shape[1])
    table = predicted.obs.iloc[row].reset_index(drop=True)
    table["gene"] = predicted.var_names.to_numpy()[order.ravel()]
    for layer in _LAYERS:
        table[layer] = np.asarray(predicted.layers[layer])[row, order.ravel()]
    table["mean"] = np.asarray(predicted.X)[row, order.ravel()]
    return table


@checked
def score_cells(
    model: PerturbDiffusion,
    adata: AnnData,
    *,
    key_added: str = "log_likelihood_bound",
    n_samples: int | None = None,
    seed: int | None = 0,
) -> None:
    """Write a lower bound on the log-likelihood of each cell under its own condition.

    Low values point at cells that the model does not expect there: wrong labels, doublets, states
    that it has not learned. Bounds fall with a cell's counts: compare cells of like library size.

    Parameters
    ----------
    model
        A trained model with `log_likelihood_bound`.
    adata
        Cells with the genes and columns of training.
    key_added
        Column of `obs` that is written, nats. What it was made with is written to
        `uns["scvi_perturb"]["scores"]`.
    n_samples, seed
        See :meth:`~scvi_perturb.model.PerturbDiffusion.log_likelihood_bound`.

    Raises
    ------
    NotTrainedError
        Before training.
    UnknownPerturbationError
        For cells with a perturbation neither trained on nor with features.
    SchemaError
        When the data do not fit the model.
    """
    model.log_likelihood_bound(adata, n_samples=n_samples, seed=seed, key_added=key_added)
    _record(adata, key_added, model, "log_likelihood_bound", n_samples=n_samples, seed=seed)


@checked
def response_score(
    model: PerturbDiffusion,
    adata: AnnData,
    *,
    key_added: str = "response_score",
    n_samples: int | None = None,
    seed: int | None = 0,
) -> None:
    """Write how much better a cell's perturbation explains it than control does.

    The difference of two bounds, of the cell under its own condition and under control: a cell
    above 0 looks perturbed, one below 0 as if it had escaped. It is 0 for control cells up to the
    noise of the draws, and says little where the perturbation does little.

    Parameters
    ----------
    model, adata, n_samples, seed
        As for :func:`score_cells`.
    key_added
        Column of `obs` that is written, nats.

    Raises
    ------
    NotTrainedError, UnknownPerturbationError, SchemaError
        As for :func:`score_cells`.
    """
    own = model.log_likelihood_bound(adata, n_samples=n_samples, seed=seed)
    control = _as_control(adata, model.registry["setup_args"])
    adata.obs[key_added] = own - model.log_likelihood_bound(control, n_samples=n_samples, seed=seed)
    _record(adata, key_added, model, "response_score", n_samples=n_samples, seed=seed)


def _as_control(adata: AnnData, setup: dict[str, Any]) -> AnnData:
    """Return the same cells under the label of control; counts are not copied."""
    column, layer = setup["perturbation_key"], setup["layer"]
    if column not in adata.obs:
        msg = f"obs has no column {column!r}, which the model was set up with."
        raise SchemaError(msg)
    return AnnData(
        X=adata.X,
        obs=adata.obs.assign(**{column: setup["control"]}),
        var=adata.var,
        layers=None if layer is None else {layer: adata.layers[layer]},
    )


def record(adata: AnnData, kind: str, name: str, facts: Mapping[str, Any]) -> None:
    """Write to `uns["scvi_perturb"][kind][name]` what a result was made by."""
    held = adata.uns.get(UNS_KEY, {})
    if not hasattr(held, "items"):
        msg = (
            f"uns[{UNS_KEY!r}] is {held!r}; expected the notes of this package. Rename or drop it."
        )
        raise SchemaError(msg)
    recorded = dict(held)
    own = {name: {"version": __version__, **facts}}
    recorded[kind] = dict(recorded.get(kind, {})) | own
    adata.uns[UNS_KEY] = recorded


def _record(
    adata: AnnData,
    column: str,
    model: PerturbDiffusion,
    score: str,
    *,
    n_samples: int | None,
    seed: int | None,
) -> None:
    facts = {
        "score": score,
        "units": "nats",
        "model": type(model).__name__,
        "n_samples": "default" if n_samples is None else n_samples,
        "seed": "none" if seed is None else seed,
    }
    record(adata, "scores", column, facts)
