"""Log-likelihoods of counts, and the batches that cells belong to."""

from __future__ import annotations

import pytest
import torch
from scvi.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial

from scvi_perturb.module import CountParameters
from scvi_perturb.module.base import batch_weights, counts_log_prob
from tests.module._small import N_CELLS, N_GENES, make_batch


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
    for nonzero in (None, (batch["rows"], batch["columns"])):
        found = counts_log_prob(batch["X"], made, likelihood, nonzero=nonzero)
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
