"""Chains of splines: both ways, their volume, their condition."""

from __future__ import annotations

import pytest
import torch

from scvi_perturb.nn import SplineChain

N_DIM, N_CONDITION = 5, 3


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return (
        SplineChain(N_DIM, N_CONDITION, n_transforms=3, n_bins=4, width=16)
        .double()
        .requires_grad_(requires_grad=False)
    )


def draws(n, d, seed=1):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_way_back_is_the_way_forth(chain):
    noise, condition = 2 * draws(50, N_DIM), draws(50, N_CONDITION, 2)
    points = chain(noise, condition)
    assert float((points - noise).abs().max()) > 0.1
    back, _ = chain.inverse(points, condition)
    assert float((back - noise).abs().max()) < 1e-8


def test_volume_is_that_of_the_jacobian(chain):
    points, condition = draws(4, N_DIM), draws(4, N_CONDITION, 2)
    _, volume = chain.inverse(points, condition)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda x, i=i: chain.inverse(x[None], condition[i : i + 1])[0][0], points[i]
        )
        torch.testing.assert_close(volume[i], jacobian.det().abs().log())


def test_the_condition_matters(chain):
    noise = draws(4, N_DIM)
    a, b = (chain(noise, c * torch.ones(4, N_CONDITION, dtype=torch.float64)) for c in (0.0, 1.0))
    assert float((a - b).abs().max()) > 1e-3
    alone = chain(noise[:1], torch.zeros(1, N_CONDITION, dtype=torch.float64))
    torch.testing.assert_close(a[:1], alone)


def test_all_dimensions_are_moved(chain):
    noise, condition = draws(20, N_DIM), draws(20, N_CONDITION, 2)
    assert ((chain(noise, condition) - noise).abs().amax(0) > 1e-3).all()
