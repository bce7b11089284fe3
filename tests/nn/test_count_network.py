"""Chances of bins: what is asked for is what would have been found with everything asked."""

from __future__ import annotations

import torch

from scvi_perturb.nn import CountNetwork


def test_asked_places_have_the_logits_they_have_among_all():
    torch.manual_seed(0)
    network = CountNetwork(7, 5, 3, width=16, n_blocks=1).eval()
    inputs = [torch.randn(4, 7) for _ in range(4)]
    rest = (torch.rand(4), torch.randn(4, 3))
    everywhere = torch.ones(4, 7, dtype=torch.bool)
    whole = network(inputs, *rest, everywhere).view(4, 7, 5)
    places = torch.rand(4, 7) < 0.4
    places[1], places[:, 2] = False, False  # neither this cell nor this gene
    torch.testing.assert_close(network(inputs, *rest, places), whole[places])
    assert network(inputs, *rest, torch.zeros_like(places)).shape == (0, 5)
