"""Which scVI may be stage one."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scvi.model import SCVI

from scvi_perturb import NotTrainedError, SchemaError
from scvi_perturb.model.latent.model import scvi_settings
from scvi_perturb.module import ScviRepresentation
from tests.model._small import make_screen

GENES = ("g0", "g1", "g2")


def made(setup=None, **init):
    """Return a scVI of three genes that says that it has been trained."""
    obs = pd.DataFrame({"batch": ["x", "y"] * 4, "age": np.arange(8.0) // 4})
    counts = sparse.csr_matrix(np.arange(24).reshape(8, 3).astype(np.float32))
    adata = AnnData(counts, obs=obs.set_axis(list("abcdefgh")), var=pd.DataFrame(index=GENES))
    SCVI.setup_anndata(adata, **({"batch_key": "batch"} if setup is None else setup))
    model = SCVI(adata, **{"n_latent": 2, "n_hidden": 4, **init})
    model.is_trained_ = True
    return model


@pytest.mark.parametrize(
    "init",
    [
        {},
        {"gene_likelihood": "nb", "dispersion": "gene-batch", "n_layers": 2},
        {"latent_distribution": "ln", "use_layer_norm": "both", "use_batch_norm": "none"},
    ],
)
@pytest.mark.parametrize("setup", [{"batch_key": "batch"}, {}], ids=["batches", "one batch"])
def test_module_can_be_made_again_from_the_settings(init, setup):
    model = made(setup, **init)
    again = ScviRepresentation(scvi_settings(model, make_screen(genes=GENES)))
    assert repr(again.vae) == repr(model.module)
    again.vae.load_state_dict(model.module.state_dict())


@pytest.mark.parametrize(
    ("setup", "init", "match"),
    [
        (None, {"gene_likelihood": "normal"}, r"gene_likelihood='normal'"),
        (None, {"dispersion": "gene-label"}, r"dispersion='gene-label'"),
        (None, {"use_observed_lib_size": False}, "use_observed_lib_size=False"),
        ({"continuous_covariate_keys": ["age"]}, {}, "1 covariates"),
        ({"batch_key": "age"}, {}, r"\['0.0', '1.0'\], the screen \['x', 'y'\]"),
    ],
    ids=["normal", "label", "library", "covariate", "batches"],
)
def test_scvi_that_does_not_fit_is_refused(setup, init, match):
    with pytest.raises(SchemaError, match=match):
        scvi_settings(made(setup, **init), make_screen(genes=GENES))


def test_other_genes_and_untrained_models_are_refused():
    model = made()
    with pytest.raises(SchemaError, match="other genes, or in another order"):
        scvi_settings(model, make_screen(genes=GENES[::-1]))
    model.is_trained_ = False
    with pytest.raises(NotTrainedError, match="has not been trained"):
        scvi_settings(model, make_screen(genes=GENES))
