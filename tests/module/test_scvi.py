"""Stage one by a trained scVI: it encodes and decodes as scVI's own module does."""

from __future__ import annotations

import pytest
import torch
from scvi.module import VAE

from scvi_perturb.module import ScviRepresentation
from tests.module._small import N_BATCH, N_CELLS, N_GENES, N_LATENT, make_batch, stir

SIZE = {"n_hidden": 7, "n_latent": N_LATENT, "n_layers": 1, "n_batch": N_BATCH}


def pair(**changes):
    """Return scVI's module and ours with the same weights."""
    settings = {"n_input": N_GENES, **SIZE, **changes}
    own = stir(VAE(**settings)).eval()
    ours = ScviRepresentation(settings).eval()
    ours.vae.load_state_dict(own.state_dict())
    return own, ours


LIKELIHOODS = pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])


@LIKELIHOODS
def test_encodes_as_scvi_does(likelihood):
    own, ours = pair(gene_likelihood=likelihood)
    batch = make_batch()
    posterior = own.inference(batch["X"], batch["batch"][:, None])["qz"]
    mean, log_variance = ours.encode(batch)
    torch.testing.assert_close(mean, posterior.loc)
    torch.testing.assert_close((0.5 * log_variance).exp(), posterior.scale)
    assert ours.n_latent == N_LATENT
    assert ours.likelihood == likelihood


@LIKELIHOODS
@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_decodes_as_scvi_does(likelihood, dispersion):
    own, ours = pair(gene_likelihood=likelihood, dispersion=dispersion)
    batch, latent = make_batch(), torch.randn(N_CELLS, N_LATENT)
    index, library = batch["batch"][:, None], batch["library"].log()[:, None]
    counts = own.generative(latent, library, index)["px"]
    made = ours.decode(latent, batch["library"], batch["batch"])
    expected = counts.log_prob(batch["X"]).sum(1)
    torch.testing.assert_close(ours.log_prob(batch, made), expected, rtol=1e-4, atol=1e-3)
    if likelihood != "zinb":
        torch.testing.assert_close(made.mean, counts.mean)
    assert (made.zero_logits is not None) == (likelihood == "zinb")


def test_decodes_a_logistic_normal_latent_as_scvi_does():
    own, ours = pair(latent_distribution="ln", gene_likelihood="nb")
    batch, before = make_batch(), torch.randn(N_CELLS, N_LATENT)
    # scVI decodes the softmax of what its posterior is a distribution of.
    latent = own.z_encoder.z_transformation(before)
    assert not torch.equal(latent, before)
    library = batch["library"].log()[:, None]
    counts = own.generative(latent, library, batch["batch"][:, None])["px"]
    made = ours.decode(before, batch["library"], batch["batch"])
    torch.testing.assert_close(made.mean, counts.mean)


def test_unknown_batch_counts_as_the_first():
    _, ours = pair()
    batch = make_batch()
    batch["batch"][:] = 0
    first = ours.encode(batch)[0]
    for code in (-1, N_BATCH, 99):
        batch["batch"][:] = code
        assert torch.equal(ours.encode(batch)[0], first)


def test_single_batch_works():
    _, ours = pair(n_batch=0)
    batch = make_batch()
    assert torch.isfinite(ours.encode(batch)[0]).all()
    made = ours.decode(torch.randn(N_CELLS, N_LATENT), batch["library"], batch["batch"])
    torch.testing.assert_close(made.mean.sum(1), batch["library"])
