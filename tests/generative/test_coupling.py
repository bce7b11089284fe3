from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from scvi_perturb.generative import couple
from scvi_perturb.generative.coupling import _sinkhorn

METHODS = ["exact", "random", "sinkhorn", "unbalanced"]


def _points(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 3, generator=torch.Generator().manual_seed(seed)) + shift


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _cost(x0: torch.Tensor, x1: torch.Tensor, indices: tuple[torch.Tensor, torch.Tensor]) -> float:
    return float((x0[indices[0]] - x1[indices[1]]).square().sum())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n_0", "n_1"), [(8, 8), (5, 12), (12, 5), (1, 3)])
def test_every_target_has_a_source(method, n_0, n_1):
    idx0, idx1 = couple(_points(n_0, 0), _points(n_1, 1), method=method, generator=_generator())
    assert idx0.dtype == idx1.dtype == torch.int64
    assert idx1.tolist() == list(range(n_1))
    assert idx0.shape == (n_1,)
    assert 0 <= int(idx0.min()) <= int(idx0.max()) < n_0


@pytest.mark.parametrize("method", ["exact", "random"])
@pytest.mark.parametrize(("n_0", "n_1"), [(8, 8), (5, 12), (12, 5), (4, 20)])
def test_sources_are_used_equally_often(method, n_0, n_1):
    idx0, _ = couple(_points(n_0, 0), _points(n_1, 1), method=method, generator=_generator())
    uses = torch.bincount(idx0, minlength=n_0)
    assert int(uses.max() - uses.min()) <= 1


@pytest.mark.parametrize(("n_0", "n_1"), [(6, 6), (7, 5)])
def test_exact_is_the_cheapest_assignment(n_0, n_1):
    x0, x1 = _points(n_0, 0), _points(n_1, 1, shift=0.5)
    best = min(
        _cost(x0, x1, (torch.tensor(order), torch.arange(n_1)))
        for order in itertools.permutations(range(n_0), n_1)
    )
    assert _cost(x0, x1, couple(x0, x1)) == pytest.approx(best, rel=1e-5)


def test_exact_agrees_with_the_reference_implementation():
    ot = pytest.importorskip("ot")
    x0, x1 = _points(60, 0), _points(60, 1, shift=1.0)
    cost = torch.cdist(x0, x1).square().double().numpy()
    expected = ot.emd2(np.full(60, 1 / 60), np.full(60, 1 / 60), cost)
    assert _cost(x0, x1, couple(x0, x1)) / 60 == pytest.approx(expected, rel=1e-5)


def test_a_shift_is_undone():
    x0 = 10 * _points(20, 0)
    order = torch.randperm(20, generator=_generator())
    idx0, _ = couple(x0, x0[order] + 0.1)
    assert torch.equal(idx0, order)


def test_sinkhorn_follows_the_reference_plan():
    ot = pytest.importorskip("ot")
    x0, x1 = _points(4, 0), _points(3, 1)
    cost = torch.cdist(x1, x0).square().double().numpy()
    plan = ot.sinkhorn(np.full(3, 1 / 3), np.full(4, 1 / 4), cost, 0.05 * cost.mean())
    # Many copies of each target share its sources as it does.
    n = 3000
    idx0, _ = couple(x0, x1.repeat(n, 1), method="sinkhorn", generator=_generator())
    shares = torch.nn.functional.one_hot(idx0.view(n, 3), 4).double().mean(0).numpy()
    # Each share has a sampling error of at most 0.5 / sqrt(n).
    np.testing.assert_allclose(shares, 3 * plan, atol=5 * 0.5 / np.sqrt(n))


def test_sinkhorn_costs_little_more_than_exact_and_less_than_random():
    x0, x1 = _points(100, 0), _points(100, 1, shift=1.0)
    exact, sinkhorn, random = (
        _cost(x0, x1, couple(x0, x1, method=method, generator=_generator()))
        for method in ("exact", "sinkhorn", "random")
    )
    assert exact <= 1.1 * sinkhorn
    assert sinkhorn < 0.8 * random


@pytest.mark.parametrize("method", METHODS)
def test_seed(method):
    x0, x1 = _points(5, 0), _points(12, 1)
    first, again = (couple(x0, x1, method=method, generator=_generator(3))[0] for _ in range(2))
    assert torch.equal(first, again)
    state = torch.get_rng_state()
    couple(x0, x1, method=method)
    assert torch.equal(torch.get_rng_state(), state)


def test_identical_points():
    idx0, _ = couple(torch.zeros(4, 2), torch.zeros(4, 2), method="sinkhorn")
    assert idx0.shape == (4,)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match=r"method='greedy'.*'exact', 'random', 'sinkhorn'"):
        couple(torch.zeros(1, 1), torch.zeros(1, 1), method="greedy")
    with pytest.raises(ValueError, match="at least one point"):
        couple(torch.zeros(0, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="same dimension"):
        couple(torch.zeros(2, 2), torch.zeros(3, 1))


def _two_clusters(n_near: int, n_far: int, seed: int) -> torch.Tensor:
    near, far = _points(n_near, seed), _points(n_far, seed + 1, shift=12.0)
    return torch.cat([near, far])


@pytest.mark.parametrize(("method", "most"), [("unbalanced", 0.02), ("sinkhorn", 1.0)])
def test_unbalanced_sources_follow_the_proportions_of_targets(method, most):
    """A cluster that grew is not fed from the other one; by balanced transport it must be."""
    x0, x1 = _two_clusters(100, 100, 0), _two_clusters(160, 40, 2)
    source, _ = couple(x0, x1, method=method, generator=_generator())
    crossed = float(((source >= 100) != (torch.arange(200) >= 160)).float().mean())
    assert crossed <= most
    if method == "sinkhorn":
        assert crossed > 0.2


@pytest.mark.filterwarnings("ignore:If reg_type = entropy:UserWarning")
def test_unbalanced_agrees_with_the_reference_implementation():
    ot = pytest.importorskip("ot")
    x0, x1 = _points(30, 0), _points(20, 1, shift=0.5)
    cost = torch.cdist(x1, x0).square().double()
    scale = float(cost.mean())
    plan = _sinkhorn(cost, 0.2)
    theirs = ot.unbalanced.sinkhorn_unbalanced(
        np.full(20, 1 / 20), np.full(30, 1 / 30), cost.numpy(), reg=0.05 * scale,
        reg_m=(float("inf"), 0.2 * scale), reg_type="entropy", numItermax=5000, stopThr=1e-12,
    )  # fmt: skip
    assert np.abs(plan.numpy() - theirs).max() < 1e-4 * theirs.max()
