"""Blocks, the embedding of time, encoder and decoder of expression."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scvi_perturb.nn import CountDecoder, ExpressionEncoder
from scvi_perturb.nn.layers import AdaptiveBlock, TimeEmbedding, hidden_layers

# Blocks --------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def test_one_cell_is_encoded_as_it_is_among_others():
    layers = hidden_layers(5, 8, 2, dropout=0.2).train()
    assert torch.isfinite(layers(torch.randn(1, 5))).all(), "a last batch of one cell trains"
    layers.eval()
    cells = torch.randn(6, 5)
    torch.testing.assert_close(layers(cells[3:4]), layers(cells)[3:4])


@pytest.mark.parametrize(("n_layers", "dropout", "n_dropout"), [(1, 0.0, 0), (3, 0.1, 3)])
def test_hidden_layers_are_as_many_as_asked_for(n_layers, dropout, n_dropout):
    made = list(hidden_layers(5, 8, n_layers, dropout=dropout))
    linear = [layer for layer in made if isinstance(layer, nn.Linear)]
    assert [layer.in_features for layer in linear] == [5] + [8] * (n_layers - 1)
    assert sum(isinstance(layer, nn.LayerNorm) for layer in made) == n_layers
    assert sum(isinstance(layer, nn.Dropout) for layer in made) == n_dropout
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in made)


def test_no_hidden_layers_change_nothing():
    cells = torch.randn(4, 5)
    assert torch.equal(hidden_layers(5, 8, 0, dropout=0.5)(cells), cells)


def test_embedding_tells_times_apart_and_is_smooth():
    embed = TimeEmbedding(16)
    times = torch.linspace(0, 1, 50)
    made = embed(times)
    assert made.shape == (50, 16)
    assert torch.pdist(made).min() > 1e-2
    near = embed(times + 1e-6)
    assert (near - made).abs().max() < 1e-3


def test_frequencies_are_geometric():
    found = TimeEmbedding(4, n_frequencies=5, max_frequency=16.0).frequencies
    torch.testing.assert_close(found, torch.tensor([1.0, 2, 4, 8, 16]))


def test_adaptive_block_starts_as_the_identity():
    block = AdaptiveBlock(8, dropout=0.5)
    hidden = torch.randn(5, 8)
    assert torch.equal(block(hidden, torch.zeros(5, 24)), hidden)
    assert torch.equal(block(hidden, torch.zeros(1, 24)), hidden)


def test_adaptive_block_agrees_with_its_formula():
    block = AdaptiveBlock(8)
    nn.init.normal_(block.offset)
    hidden, modulation = torch.randn(5, 8), torch.randn(5, 24)
    scale, shift, gate = (modulation + block.offset).split(8, dim=1)
    centred = hidden - hidden.mean(1, keepdim=True)
    normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    inner = block.first(normed * (1 + scale) + shift)
    expected = hidden + gate * block.second(inner * torch.sigmoid(inner))
    torch.testing.assert_close(block(hidden, modulation), expected, rtol=1e-5, atol=1e-5)


def test_adaptive_block_passes_one_modulation_to_all_cells():
    block = AdaptiveBlock(8)
    hidden, modulation = torch.randn(5, 8), torch.randn(1, 24)
    expected = block(hidden, modulation.expand(5, -1))
    torch.testing.assert_close(block(hidden, modulation), expected)


# Encoders ------------------------------------------------------------------------------


N_LATENT, N_GENES, N_BATCH = 3, 6, 2
SIZE = {"n_hidden": 8, "n_layers": 1, "n_other": 0, "dispersion": "gene", "zero_inflated": False}


def decoder(n_batch=N_BATCH, **changes):
    return CountDecoder(N_LATENT, N_GENES, n_batch, **{**SIZE, **changes})


def latents(n=4):
    return torch.randn(n, N_LATENT)


def batches(*codes):
    return nn.functional.one_hot(torch.tensor(codes), N_BATCH).float()


def heads(made):
    return {name.split(".")[0] for name, _ in made.named_parameters()} - {"hidden", "logits"}


@pytest.mark.parametrize(
    ("dispersion", "zero_inflated", "expected"),
    [
        ("gene", False, {"log_dispersion"}),
        ("gene-batch", False, {"log_dispersion"}),
        ("gene-cell", False, {"cell_dispersion"}),
        ("gene", True, {"log_dispersion", "zeros"}),
        ("gene-cell", True, {"cell_dispersion", "zeros"}),
    ],
)
def test_only_the_heads_in_use_are_built(dispersion, zero_inflated, expected):
    made = decoder(dispersion=dispersion, zero_inflated=zero_inflated)
    assert heads(made) == expected
    decoded = made(latents(), batches(0, 1, 1, 0))
    assert (decoded.zero_logits is not None) == zero_inflated
    # What is built is used: every parameter gets a gradient.
    sum(part.sum() for part in decoded if part is not None).backward()
    assert all(p.grad is not None for p in made.parameters())


@pytest.mark.parametrize("n_other", [0, 1])
def test_one_more_logit_for_the_genes_left_out(n_other):
    decoded = decoder(n_other=n_other, zero_inflated=True)(latents(), batches(0, 0, 1, 1))
    assert decoded.logits.shape == (4, N_GENES + n_other)
    assert decoded.zero_logits.shape == (4, N_GENES)
    assert decoded.log_dispersion.shape == (N_GENES,)


def test_dispersion_of_a_batch_is_that_of_its_cells():
    made = decoder(dispersion="gene-batch")
    nn.init.normal_(made.log_dispersion)
    unknown = torch.full((1, N_BATCH), 0.5)
    found = made(latents(), torch.cat([batches(1, 0, 1), unknown])).log_dispersion
    assert found.shape == (4, N_GENES)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    torch.testing.assert_close(found[3], (found[0] + found[1]) / 2)


@pytest.mark.parametrize("dispersion", ["gene", "gene-batch", "gene-cell"])
def test_a_single_batch_has_no_column(dispersion):
    made = decoder(n_batch=0, dispersion=dispersion)
    decoded = made(latents(), torch.zeros(4, 0))
    assert made.hidden[0].in_features == N_LATENT
    assert decoded.log_dispersion.shape[-1] == N_GENES


def test_linear_decoder_is_linear():
    made = decoder(n_layers=0)
    weights = batches(0, 0, 1, 1)
    a, b = latents(), latents()

    def change(latent):
        return made(latent, weights).logits - made(torch.zeros(4, N_LATENT), weights).logits

    torch.testing.assert_close(change(2 * a - 3 * b), 2 * change(a) - 3 * change(b))
    # The columns of the latent are gene programs.
    torch.testing.assert_close(change(a), a @ made.logits.weight[:, :N_LATENT].T)


def test_hidden_decoder_is_not_linear():
    made, a = decoder(), 3 * latents()
    nothing = torch.zeros_like(a)
    weights = batches(0, 0, 0, 0)
    half, whole, none = (made(z, weights).logits for z in (a / 2, a, nothing))
    assert (whole - none - 2 * (half - none)).abs().max() > 1e-2


def test_decoder_starts_at_the_profile_it_is_given():
    made = decoder(n_layers=0)
    profile = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    made.initialise_bias(profile.log())
    logits = made(torch.zeros(1, N_LATENT), torch.zeros(1, N_BATCH)).logits
    torch.testing.assert_close(torch.softmax(logits, 1)[0], profile)


def encoder(n_batch=N_BATCH, **changes):
    size = {"n_hidden": 8, "n_layers": 2, "dropout": 0.3, **changes}
    return ExpressionEncoder(N_GENES, n_batch, N_LATENT, **size)


def test_encoder_gives_mean_and_bounded_log_variance():
    made = encoder()
    mean, log_variance = made(torch.randn(4, N_GENES), batches(0, 1, 0, 1))
    assert mean.shape == log_variance.shape == (4, N_LATENT)
    nn.init.constant_(made.log_variance.bias, 100.0)
    assert made(torch.randn(4, N_GENES), batches(0, 1, 0, 1))[1].max() <= 4
    nn.init.constant_(made.log_variance.bias, -100.0)
    assert made(torch.randn(4, N_GENES), batches(0, 1, 0, 1))[1].min() >= -8


def test_encoder_knows_the_batch_and_trains_on_one_cell():
    made = encoder().eval()
    cell = torch.randn(1, N_GENES)
    assert not torch.allclose(made(cell, batches(0))[0], made(cell, batches(1))[0])
    assert torch.isfinite(encoder(n_batch=0).train()(cell, torch.zeros(1, 0))[0]).all()


def test_dropout_acts_while_training_only():
    made, cells, weights = encoder(), torch.randn(4, N_GENES), batches(0, 1, 0, 1)
    assert not torch.equal(made(cells, weights)[0], made(cells, weights)[0])
    made.eval()
    assert torch.equal(made(cells, weights)[0], made(cells, weights)[0])


def test_linear_map_adds_to_the_mean_only():
    made = ExpressionEncoder(
        N_GENES, N_BATCH, N_LATENT, n_hidden=8, n_layers=1, dropout=0.0, linear=True
    ).eval()
    cells, weights = torch.randn(4, N_GENES), batches(0, 1, 0, 1)
    mean, log_variance = made(cells, weights)
    inputs = torch.cat([cells, weights], dim=1)
    with torch.no_grad():
        added = made.linear_scale * inputs @ made.linear.weight.T
        made.linear.weight.zero_()
    without = made(cells, weights)
    torch.testing.assert_close(mean - added, without[0])
    assert torch.equal(log_variance, without[1])


def test_linear_map_adds_to_the_logits():
    made = decoder()
    latent, weights = torch.randn(3, N_LATENT), batches(0, 1, 0)
    before = made(latent, weights).logits
    made.add_linear()
    added = torch.cat([latent, weights], dim=1) @ made.linear.weight.T
    torch.testing.assert_close(made(latent, weights).logits, before + added)
