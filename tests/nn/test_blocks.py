"""Building blocks: hidden layers, the embedding of time, adaptive residual blocks."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scvi_perturb.nn.layers import AdaptiveBlock, TimeEmbedding, hidden_layers


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
