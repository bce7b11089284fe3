"""Stage one: likelihoods, batches, the autoencoder of counts and a trained scVI."""

from __future__ import annotations

import pytest
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial
from scvi.module import VAE
from torch.distributions import Normal, kl_divergence
from torch.nn import functional

from scvi_perturb.module import (
    AutoencoderConfig,
    CountAutoencoder,
    CountParameters,
    ScviRepresentation,
)
from scvi_perturb.module.base import batch_weights, counts_log_prob
from tests.module._small import N_BATCH, N_CELLS, N_GENES, N_LATENT, make_batch, stir

# Autoencoder ---------------------------------------------------------------------------


SIZE = {"n_latent": N_LATENT, "n_hidden": 7, "n_layers": 2, "dropout": 0.0}


def make(*, n_batch=N_BATCH, partial_panel=False, **config):
    made = AutoencoderConfig(**{**SIZE, **config})
    return stir(CountAutoencoder(N_GENES, n_batch, made, partial_panel=partial_panel))


def dispersion_of(module, latent, batch):
    """Return the inverse dispersion by its definition: ten times the parameter, exponentiated."""
    decoder = module.decoder
    if module.config.dispersion == "gene-cell":
        one_hot = functional.one_hot(batch, N_BATCH).float()
        return decoder.cell_dispersion(decoder.hidden(torch.cat([latent, one_hot], 1))).exp()
    rows = batch if module.config.dispersion == "gene-batch" else torch.zeros_like(batch)
    return (10 * decoder.log_dispersion[rows]).exp()


def counts_of(module, latent, library, batch):
    """Return the distribution of counts, written with scvi-tools' distributions."""
    one_hot = functional.one_hot(batch, N_BATCH).float()
    hidden = module.decoder.hidden(torch.cat([latent, one_hot], 1))
    mean = torch.softmax(module.decoder.logits(hidden), 1) * library[:, None]
    theta = None if module.likelihood == "poisson" else dispersion_of(module, latent, batch)
    if module.likelihood == "zinb":
        zeros = module.decoder.zeros(hidden)
        return ZeroInflatedNegativeBinomial(mu=mean, theta=theta, zi_logits=zeros)
    return Poisson(rate=mean) if theta is None else NegativeBinomial(mu=mean, theta=theta)


@pytest.mark.parametrize(
    ("likelihood", "dispersion"),
    [
        ("nb", "gene"),
        ("nb", "gene-batch"),
        ("nb", "gene-cell"),
        ("zinb", "gene"),
        ("zinb", "gene-cell"),
        ("poisson", "gene"),
    ],
)
@pytest.mark.parametrize("sparse", [True, False], ids=["sparse", "dense"])
def test_loss_is_the_negative_evidence_lower_bound(likelihood, dispersion, sparse):
    module, batch = make(likelihood=likelihood, dispersion=dispersion), make_batch(sparse=sparse)
    inference, generative, output = module(batch, loss_kwargs={"kl_weight": 0.3})
    posterior = Normal(inference["qz_m"], (0.5 * inference["qz_logv"]).exp())
    divergence = kl_divergence(posterior, Normal(torch.zeros(()), torch.ones(()))).sum(1)
    counts = counts_of(module, inference["z"], batch["library"], batch["batch"])
    reconstruction = -counts.log_prob(batch["X"]).sum(1)
    expected = (reconstruction + 0.3 * divergence).mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-5, atol=1e-4)
    assert output.n_obs_minibatch == N_CELLS
    logged = output.reconstruction_loss["reconstruction_loss"]
    torch.testing.assert_close(logged, reconstruction, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(output.kl_local["kl_local"], divergence, rtol=1e-5, atol=1e-5)
    mean = counts.mu if likelihood == "zinb" else counts.mean
    torch.testing.assert_close(generative["px"].mean, mean)
    output.loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)


def test_loss_of_normal_values_agrees_too():
    module, batch = make(likelihood="normal"), make_batch()
    inference, generative, output = module(batch, loss_kwargs={"kl_weight": 0.0})
    values = torch.log1p(1e4 * batch["X"] / batch["library"][:, None])
    one_hot = functional.one_hot(batch["batch"], N_BATCH).float()
    mean = module.decoder(inference["z"], one_hot).logits
    scale = (10 * module.decoder.log_dispersion[0]).exp()
    expected = -Normal(mean, scale).log_prob(values).sum(1).mean()
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-3)
    assert generative["px"].zero_logits is None


def test_latent_is_drawn_from_the_posterior():
    module, batch = make(), make_batch()
    draws = torch.stack([module.inference(batch)["z"] for _ in range(2000)])
    mean, log_variance = module.encode(batch)
    error = (0.5 * log_variance).exp() / 2000**0.5
    assert ((draws.mean(0) - mean).abs() < 5 * error).all()
    torch.testing.assert_close(draws.var(0), log_variance.exp(), rtol=0.2, atol=0)


def test_library_is_given_and_only_scales():
    module = make(likelihood="zinb", dispersion="gene-cell")
    latent, batch = torch.randn(3, N_LATENT), torch.tensor([0, 1, 2])
    small = module.decode(latent, torch.tensor([10.0, 20, 30]), batch)
    large = module.decode(latent, torch.tensor([100.0, 200, 300]), batch)
    torch.testing.assert_close(large.mean, 10 * small.mean)
    torch.testing.assert_close(small.mean.sum(1), torch.tensor([10.0, 20, 30]))
    assert torch.equal(small.dispersion, large.dispersion)
    assert torch.equal(small.zero_logits, large.zero_logits)


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_partial_panel_leaves_the_rest_of_the_library_out(decoder):
    module = make(partial_panel=True, decoder=decoder)
    latent, batch = torch.randn(4, N_LATENT), torch.tensor([0, 1, 2, 0])
    library = torch.tensor([10.0, 20, 30, 40])
    made = module.decode(latent, library, batch)
    assert made.mean.shape == (4, N_GENES)
    share = made.mean.sum(1) / library
    assert (share < 1).all()
    logits = module.decoder(latent, functional.one_hot(batch, N_BATCH).float()).logits
    assert logits.shape == (4, N_GENES + 1)
    torch.testing.assert_close(1 - share, torch.softmax(logits, 1)[:, -1])


def test_partial_panel_trains():
    module, batch = make(partial_panel=True), make_batch()
    batch["library"] = 3 * batch["library"]
    _, _, output = module(batch)
    output.loss.backward()
    assert module.decoder.logits.bias.grad[-1].abs() > 0


@pytest.mark.parametrize("partial_panel", [False, True])
def test_decoder_starts_at_the_mean_profile(partial_panel):
    module = make(partial_panel=partial_panel)
    profile = torch.tensor([0.1, 0.2, 0.05, 0.25, 0.0])
    profile = profile if partial_panel else profile / profile.sum()
    with torch.no_grad():
        module.decoder.logits.weight.zero_()
    module.initialise(profile)
    made = module.decode(torch.randn(2, N_LATENT), torch.full((2,), 100.0), torch.tensor([0, 1]))
    torch.testing.assert_close(made.mean, 100 * profile.expand(2, -1), rtol=1e-3, atol=1e-3)


def test_decoder_of_normal_values_starts_at_their_mean():
    module = make(likelihood="normal", partial_panel=True)
    assert module.decoder.logits.out_features == N_GENES, "values have no rest"
    with torch.no_grad():
        module.decoder.logits.weight.zero_()
    profile = torch.tensor([0.1, 0.2, 0.05, 0.25, 0.4])
    module.initialise(profile)
    made = module.decode(torch.randn(1, N_LATENT), torch.ones(1), torch.tensor([0]))
    torch.testing.assert_close(made.mean[0], torch.log1p(1e4 * profile))


def test_unknown_batch_is_between_the_known_ones():
    module = make(decoder="linear")
    latent, library = torch.randn(1, N_LATENT), torch.ones(1)
    known = [module.decode(latent, library, torch.tensor([b])).mean.log() for b in range(N_BATCH)]
    unknown = module.decode(latent, library, torch.tensor([N_BATCH])).mean.log()
    # A linear decoder: the mean of the logits, up to the constant of the softmax.
    rest = unknown - torch.stack(known).mean(0)
    torch.testing.assert_close(rest, rest[:, :1].expand_as(rest), rtol=0, atol=1e-5)
    batch = make_batch(1)
    for code in (-1, N_BATCH, 99):
        batch["batch"][:] = code
        assert torch.isfinite(module.encode(batch)[0]).all()


def test_screen_of_one_batch_does_not_look_at_it():
    module, batch = make(n_batch=1), make_batch()
    first = module.encode(batch)[0]
    batch["batch"][:] = 5
    assert torch.equal(module.encode(batch)[0], first)


def test_encoder_sees_counts_and_not_the_library():
    module, batch = make(), make_batch()
    before = module.encode(batch)[0]
    batch["library"] = batch["library"] * 7
    assert torch.equal(module.encode(batch)[0], before)


def test_one_cell_trains():
    module = make(dropout=0.3).train()
    _, _, output = module(make_batch(1))
    assert torch.isfinite(output.loss)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_poisson_has_no_head_for_the_dispersion_that_it_ignores(dispersion):
    module = make(likelihood="poisson", dispersion=dispersion)
    module(make_batch())[-1].loss.backward()
    unused = [p.numel() for p in module.parameters() if p.grad is None]
    assert sum(unused) <= N_GENES


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"likelihood": "gaussian"}, "'nb', 'normal', 'poisson', 'zinb'"),
        ({"dispersion": "cell"}, "'gene', 'gene-batch', 'gene-cell'"),
        ({"decoder": "deep"}, "'linear', 'mlp'"),
    ],
)
def test_choices_are_checked(wrong, match):
    with pytest.raises(ValueError, match=match):
        AutoencoderConfig(**wrong)


# Representation ------------------------------------------------------------------------


def parameters(*, zeros, per_cell):
    mean = torch.rand(N_CELLS, N_GENES) * 5 + 0.1
    theta = torch.rand(*((N_CELLS,) if per_cell else ()), N_GENES) * 3 + 0.1
    return CountParameters(mean, theta, torch.randn(N_CELLS, N_GENES) if zeros else None)


def reference(likelihood, made):
    if likelihood == "poisson":
        return Poisson(rate=made.mean)
    if likelihood == "zinb":
        return ZeroInflatedNegativeBinomial(
            mu=made.mean, theta=made.dispersion, zi_logits=made.zero_logits
        )
    return NegativeBinomial(mu=made.mean, theta=made.dispersion)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
@pytest.mark.parametrize("per_cell", [False, True])
def test_log_likelihood_agrees_with_scvi(likelihood, per_cell):
    made, batch = parameters(zeros=likelihood == "zinb", per_cell=per_cell), make_batch()
    expected = reference(likelihood, made).log_prob(batch["X"]).sum(1)
    for tensors in (batch, {"X": batch["X"]}):
        found = counts_log_prob(tensors, made, likelihood)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


SEEN = torch.ones(4, dtype=torch.bool)


def test_registered_batch_without_training_cells_is_unknown():
    seen = torch.tensor([True, False, True])
    found = batch_weights(torch.tensor([0, 1, 2]), seen)
    assert torch.equal(found, torch.tensor([[1.0, 0, 0], [0.5, 0, 0.5], [0, 0, 1]]))


def test_batches_are_one_hot():
    found = batch_weights(torch.tensor([2, 0, 1]), SEEN[:3])
    assert torch.equal(found, torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]]))


def test_batch_never_trained_on_is_the_mean_of_all():
    found = batch_weights(torch.tensor([4, 5, -1, 3]), SEEN)
    torch.testing.assert_close(found[:3], torch.full((3, 4), 0.25))
    assert found[3].tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(found.sum(1), torch.ones(4))


@pytest.mark.parametrize("n_batch", [0, 1])
def test_a_single_batch_has_no_column(n_batch):
    assert batch_weights(torch.tensor([0, 7]), SEEN[:n_batch]).shape == (2, 0)


# Scvi ----------------------------------------------------------------------------------


SCVI_SIZE = {"n_hidden": 7, "n_latent": N_LATENT, "n_layers": 1, "n_batch": N_BATCH}


def pair(**changes):
    """Return scVI's module and ours with the same weights."""
    settings = {"n_input": N_GENES, **SCVI_SIZE, **changes}
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
