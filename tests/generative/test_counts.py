from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from scipy import sparse

from scvi_perturb.generative import counts as _count_draws
from scvi_perturb.generative import counts as _counts
from scvi_perturb.generative import sample_counts

#: Means and inverse dispersions on both sides of every switch between methods.
LAWS = [
    (0.01, 0.5),
    (0.3, 0.05),
    (0.5, 1e-3),
    (1.0, 1.0),
    (3.0, 0.1),
    (7.9, 0.39),
    (7.9, 50.0),
    (8.1, 0.5),
    (8.1, 1e5),
    (60.0, 0.02),
    (60.0, 3.0),
    (500.0, 200.0),
]
#: With about 50 tests of one seed each, a true law fails one in 2,000 times.
LEAST_P = 1e-5
N_DRAWS = 40_000


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _p_value(draws: np.ndarray, probabilities: np.ndarray) -> float:
    """Chi-square test; `probabilities` of 0, 1, ...; the last bin takes what is left."""
    expected = len(draws) * probabilities
    edges = [0]
    total = 0.0
    for value, share in enumerate(expected):
        total += share
        if total >= 10 and len(draws) - expected[: value + 1].sum() >= 10:
            edges.append(value + 1)
            total = 0.0
    bins = np.searchsorted(edges, draws, side="right") - 1
    observed = np.bincount(bins, minlength=len(edges))
    shares = np.add.reduceat(probabilities, edges)
    shares[-1] += 1 - probabilities.sum()
    if len(edges) == 1:
        return 1.0
    return float(scipy.stats.chisquare(observed, len(draws) * shares).pvalue)


def _probabilities(mean: float, theta: float | None) -> np.ndarray:
    law = (
        scipy.stats.poisson(mean)
        if theta is None
        else scipy.stats.nbinom(theta, theta / (theta + mean))
    )
    return law.pmf(np.arange(int(law.ppf(1 - 1e-7)) + 2))


def _draw(mean: float, theta: float | None, zi: float | None = None, seed: int = 0) -> np.ndarray:
    mu = torch.full((N_DRAWS // 200, 200), mean)
    shape = None if theta is None else torch.full((200,), theta)
    logits = None if zi is None else torch.full_like(mu, zi)
    counts = sample_counts(mu, shape, logits, generator=_generator(seed))
    return counts.toarray().ravel().astype(int)


@pytest.mark.parametrize(("mean", "theta"), LAWS)
def test_negative_binomial_law(mean, theta):
    assert _p_value(_draw(mean, theta), _probabilities(mean, theta)) > LEAST_P


@pytest.mark.parametrize("mean", [0.01, 0.7, 4.0, 7.9, 8.1, 40.0, 300.0])
def test_poisson_law(mean):
    assert _p_value(_draw(mean, None), _probabilities(mean, None)) > LEAST_P


@pytest.mark.parametrize(("mean", "theta"), [(0.5, 1.0), (7.0, 0.3), (50.0, 2.0), (3.0, None)])
def test_zero_inflated_law(mean, theta):
    logit = 0.4
    dropped = 1 / (1 + np.exp(-logit))
    probabilities = (1 - dropped) * _probabilities(mean, theta)
    probabilities[0] += dropped
    assert _p_value(_draw(mean, theta, logit), probabilities) > LEAST_P


@pytest.mark.parametrize(("mean", "theta", "zi"), [(0.5, 0.5, None), (20.0, 2.0, 0.4)])
def test_dense_draws_follow_the_same_law(mean, theta, zi):
    # What is used where all entries are drawn in parallel, as on a GPU.
    mu = torch.full((N_DRAWS // 200, 200), mean)
    logits = None if zi is None else torch.full_like(mu, zi)
    lengths, genes, values = _count_draws.draw_dense(
        mu, torch.full((200,), theta), logits, _generator()
    )
    starts = np.concatenate([[0], np.cumsum(lengths)])
    draws = sparse.csr_matrix((values, genes, starts), shape=mu.shape).toarray()
    dropped = 0 if zi is None else 1 / (1 + np.exp(-zi))
    probabilities = (1 - dropped) * _probabilities(mean, theta)
    probabilities[0] += dropped
    assert _p_value(draws.ravel().astype(int), probabilities) > LEAST_P


def test_each_entry_has_its_own_parameters(monkeypatch):
    monkeypatch.setattr(_counts, "_CHUNK", 300)  # seven cells a time, and a last part of five
    n_cells, n_genes = 3000, 40
    random = _generator(1)
    mu = torch.exp(1.5 * torch.randn(1, n_genes, generator=random)).expand(n_cells, -1)
    theta = torch.exp(torch.randn(n_genes, generator=random))
    for dispersion in (theta, theta.expand(n_cells, -1)):
        counts = sample_counts(mu, dispersion, generator=_generator(2)).toarray()
        mean, variance = mu[0].numpy(), (mu[0] + mu[0] ** 2 / theta).numpy()
        z = (counts.mean(0) - mean) / np.sqrt(variance / n_cells)
        assert scipy.stats.kstest(z, "norm").pvalue > LEAST_P
        assert np.abs(z).max() < 5
        # Genes and cells are independent: 780 correlations of sampling error 1 / sqrt(n).
        ranks = scipy.stats.rankdata(counts, axis=0)
        correlation = np.corrcoef(ranks.T)[np.triu_indices(n_genes, 1)]
        assert np.abs(correlation).max() < 5.5 / np.sqrt(n_cells)
        neighbours = [np.corrcoef(column[:-1], column[1:])[0, 1] for column in ranks.T]
        assert np.abs(neighbours).max() < 5 / np.sqrt(n_cells)


def test_result_is_canonical_csr_of_integers():
    mu = torch.exp(torch.randn(50, 30, generator=_generator()))
    mu[7] = 0
    counts = sample_counts(mu, torch.ones(30), generator=_generator())
    assert isinstance(counts, sparse.csr_matrix)
    assert counts.dtype == np.float32
    assert counts.shape == (50, 30)
    assert counts.has_canonical_format
    assert (counts.data >= 1).all()
    assert (counts.data == np.round(counts.data)).all()
    assert counts[7].nnz == 0


def test_seed():
    mu, theta = torch.full((20, 20), 2.0), torch.ones(20)
    state, state_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = (
        sample_counts(mu, theta, generator=_generator(seed)).toarray() for seed in (0, 0, 1)
    )
    assert (first == again).all()
    assert (first != other).any()
    generator = _generator(0)
    one, two = (sample_counts(mu, theta, generator=generator).toarray() for _ in range(2))
    assert (one != two).any()
    assert (sample_counts(mu, theta) != sample_counts(mu, theta)).nnz > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert (np.random.get_state()[1] == state_numpy).all()  # noqa: NPY002


def test_gradients_and_half_precision_are_accepted():
    mu = torch.full((4, 3), 2.0, dtype=torch.bfloat16, requires_grad=True)
    assert sample_counts(mu, torch.ones(3, dtype=torch.float64)).shape == (4, 3)


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_to_draw(shape):
    counts = sample_counts(torch.ones(shape), torch.ones(shape[1]))
    assert counts.shape == shape
    assert counts.nnz == 0


@pytest.mark.parametrize(
    ("mu", "theta", "zi", "message"),
    [
        (torch.tensor([[1.0, float("nan")]]), None, None, "mu ranges from nan"),
        (torch.tensor([[1.0, float("inf")]]), None, None, "expected finite means"),
        (torch.tensor([[1.0, -0.1]]), None, None, "mu ranges from -0.1"),
        (torch.ones(1, 2), torch.tensor([0.0, 1.0]), None, "theta has a minimum of 0"),
        (torch.ones(1, 2), torch.ones(3), None, r"theta has shape \(3,\)"),
        (torch.ones(1, 2), None, torch.ones(2), r"zi_logits has shape \(2,\)"),
        (torch.ones(2), None, None, r"mu has shape \(2,\)"),
    ],
)
def test_wrong_parameters_are_named(mu, theta, zi, message):
    with pytest.raises(ValueError, match=message):
        sample_counts(mu, theta, zi)
