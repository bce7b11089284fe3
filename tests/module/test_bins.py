"""Bins of counts: nothing is lost but within a bin."""

from __future__ import annotations

import pytest
import torch

from scvi_perturb.module.count_diffusion import RawCounts, bin_edges, bins_of, draw_in_bins
from tests.module._small import make_batch


@pytest.mark.parametrize(("largest", "n_bins"), [(3, 8), (40, 24), (5000, 24), (9, 2), (13, 13)])
def test_bins_hold_every_count(largest, n_bins):
    edges = bin_edges(largest, n_bins)
    assert len(edges) == n_bins + 1
    assert (edges.diff() > 0).all()
    assert int(edges[0]) == 0
    assert int(edges[-1]) > largest
    counts = torch.arange(largest + 1)
    bins = bins_of(counts, edges)
    assert ((edges[bins] <= counts) & (counts < edges[bins + 1])).all()
    assert int(bins_of(torch.tensor([10 * largest + 10]), edges)) == n_bins - 1


def test_draws_stay_in_their_bins():
    edges = bin_edges(5000, 24)
    bins = torch.arange(24).repeat(200, 1)
    drawn = draw_in_bins(bins, edges, torch.Generator().manual_seed(0))
    assert (drawn == drawn.round()).all()
    assert torch.equal(bins_of(drawn.long(), edges), bins)
    assert (drawn[:, :12] == torch.arange(12)).all(), "small counts are exact"
    assert int(drawn[:, -1].unique().numel()) > 50


def test_counts_come_back():
    stage, batch = RawCounts(5), make_batch()
    latent, log_variance = stage.encode(batch)
    assert float(log_variance.max()) < -20
    found = stage.decode(latent, batch["library"], batch["batch"])
    assert torch.equal(found.mean, batch["X"])
