"""How likely cells are under a model, written beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from anndata import AnnData

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._errors import SchemaError
from scvi_perturb._version import __version__

if TYPE_CHECKING:
    from scvi_perturb.model.diffusion import PerturbDiffusion


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


def _record(
    adata: AnnData,
    column: str,
    model: PerturbDiffusion,
    score: str,
    *,
    n_samples: int | None,
    seed: int | None,
) -> None:
    recorded = dict(adata.uns.get(UNS_KEY, {}))
    recorded["scores"] = dict(recorded.get("scores", {})) | {
        column: {
            "score": score,
            "units": "nats",
            "model": type(model).__name__,
            "version": __version__,
            "n_samples": "default" if n_samples is None else n_samples,
            "seed": "none" if seed is None else seed,
        }
    }
    adata.uns[UNS_KEY] = recorded
