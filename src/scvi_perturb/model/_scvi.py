"""Read the settings off a trained scVI, so that its module can be made again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scvi import REGISTRY_KEYS

from scvi_perturb._errors import NotTrainedError, SchemaError

if TYPE_CHECKING:
    from scvi.model import SCVI

    from scvi_perturb.model._screen import Screen

__all__ = ["scvi_settings"]


def scvi_settings(scvi_model: SCVI, screen: Screen) -> dict[str, Any]:
    """Return the arguments of `scvi.module.VAE` of a trained model, if it fits the screen.

    Raises
    ------
    NotTrainedError
        When it has not been trained.
    SchemaError
        When genes or batches differ, or it has covariates or a learned library size, or does
        not model counts by what the genes and batches alone say.
    """
    if not scvi_model.is_trained_:
        msg = "This scVI has not been trained; call its `.train()` first."
        raise NotTrainedError(msg)
    genes = tuple(map(str, scvi_model.get_var_names()))
    if genes != screen.genes:
        msg = "scVI was trained on other genes, or in another order, than the screen registered."
        raise SchemaError(msg)
    stats = scvi_model.summary_stats
    module = scvi_model.module
    covariates = stats.get("n_extra_categorical_covs", 0) + stats.get("n_extra_continuous_covs", 0)
    if covariates or not module.use_observed_lib_size:
        msg = (
            "Stage one may be a scVI without further covariates and with the observed library "
            f"size; this one has {covariates} covariates, use_observed_lib_size="
            f"{module.use_observed_lib_size}."
        )
        raise SchemaError(msg)
    arguments = scvi_model.init_params_["non_kwargs"]
    likelihood, dispersion = arguments["gene_likelihood"], arguments["dispersion"]
    if likelihood not in {"nb", "zinb", "poisson"} or dispersion == "gene-label":
        msg = (
            "Stage one may be a scVI of counts ('nb', 'poisson', 'zinb') with a dispersion per "
            f"'gene', 'gene-batch' or 'gene-cell'; this one has gene_likelihood={likelihood!r}, "
            f"dispersion={dispersion!r}."
        )
        raise SchemaError(msg)
    state = scvi_model.adata_manager.get_state_registry(REGISTRY_KEYS.BATCH_KEY)
    own = [str(label) for label in np.asarray(state.categorical_mapping)]
    ours = [labels[0] for labels in screen.batches if labels]
    if len(own) > 1 and own != ours:
        msg = f"scVI knows the batches {own}, the screen {ours}; set both up with one batch_key."
        raise SchemaError(msg)
    kept = (
        "n_hidden",
        "n_latent",
        "n_layers",
        "dropout_rate",
        "dispersion",
        "gene_likelihood",
        "latent_distribution",
    )
    extra = {k: v for group in scvi_model.init_params_["kwargs"].values() for k, v in group.items()}
    return {
        "n_input": len(screen.genes),
        "n_batch": len(own),
        "use_observed_lib_size": True,
        **{key: arguments[key] for key in kept},
        **extra,
    }
