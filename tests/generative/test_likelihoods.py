from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from scvi import distributions as scvi

from scvi_perturb.generative import nb_log_prob, normal_log_prob, poisson_log_prob, zinb_log_prob
from scvi_perturb.generative.likelihoods import (
    _digamma_excess,
    _log_rising,
    _log_rising_slope,
    _stirling_remainder,
    nb_log_prob_of_logits,
)

N_CELLS, N_GENES = 6, 40
DTYPES = [torch.float32, torch.float64]
#: Relative error of a log-likelihood and, in norm, of a gradient.
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-6}


class Batch:
    """Counts and parameters that require gradients."""

    def __init__(self, dtype: torch.dtype, *, shared: bool = True, seed: int = 0) -> None:
        random = torch.Generator().manual_seed(seed)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=random, dtype=torch.float64)

        shape = (N_GENES,) if shared else (N_CELLS, N_GENES)
        mu, theta = torch.exp(draw(N_CELLS, N_GENES)), torch.exp(draw(*shape))
        self.x = torch.poisson(2 * mu * (torch.rand(mu.shape, generator=random) < 0.4), random)
        self.x = self.x.to(dtype)
        self.mu = mu.to(dtype).requires_grad_()
        self.theta = theta.to(dtype).requires_grad_()
        self.zi = draw(N_CELLS, N_GENES).to(dtype).requires_grad_()
        self.weights = torch.exp(draw(N_CELLS)).to(dtype)

    def ours(self, name: str, **options) -> torch.Tensor:
        x, mu, theta = self.x, self.mu, self.theta
        return {
            "nb": lambda: nb_log_prob(x, mu, theta, **options),
            "zinb": lambda: zinb_log_prob(x, mu, theta, self.zi, **options),
            "poisson": lambda: poisson_log_prob(x, mu, **options),
            "normal": lambda: normal_log_prob(x, mu, theta),
        }[name]()

    def theirs(self, name: str) -> torch.Tensor:
        mu, theta = self.mu, self.theta
        law = {
            "nb": lambda: scvi.NegativeBinomial(mu=mu, theta=theta),
            "zinb": lambda: scvi.ZeroInflatedNegativeBinomial(
                mu=mu, theta=theta, zi_logits=self.zi
            ),
            "poisson": lambda: scvi.Poisson(rate=mu),
            "normal": lambda: scvi.Normal(mu, theta),
        }[name]()
        return law.log_prob(self.x).sum(-1)

    def parameters(self, name: str) -> list[torch.Tensor]:
        return {
            "nb": [self.mu, self.theta],
            "zinb": [self.mu, self.theta, self.zi],
            "poisson": [self.mu],
            "normal": [self.mu, self.theta],
        }[name]


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "normal"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [True, False])
def test_agrees_with_scvi(name, dtype, shared):
    batch = Batch(dtype, shared=shared)
    ours, theirs = batch.ours(name), batch.theirs(name)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours, theirs, rtol=CLOSE[dtype], atol=0)
    parameters = batch.parameters(name)
    for mine, other in zip(
        torch.autograd.grad((ours * batch.weights).sum(), parameters),
        torch.autograd.grad((theirs * batch.weights).sum(), parameters),
        strict=True,
    ):
        assert mine.shape == other.shape
        assert (mine - other).norm() < CLOSE[dtype] * other.norm()


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_gradients_are_those_of_finite_differences(name, shared):
    batch = Batch(torch.float64, shared=shared, seed=1)
    x = batch.x
    functions = {"nb": nb_log_prob, "zinb": zinb_log_prob, "poisson": poisson_log_prob}

    def function(*parameters: torch.Tensor) -> torch.Tensor:
        return functions[name](x, *parameters)

    assert torch.autograd.gradcheck(function, batch.parameters(name))


def test_agrees_with_scipy():
    batch = Batch(torch.float64)
    x, mu, theta = (a.detach().numpy() for a in (batch.x, batch.mu, batch.theta))
    expected = scipy.stats.nbinom.logpmf(x, theta, theta / (theta + mu)).sum(-1)
    np.testing.assert_allclose(batch.ours("nb").detach(), expected, rtol=1e-6)
    expected = scipy.stats.poisson.logpmf(x, mu).sum(-1)
    np.testing.assert_allclose(batch.ours("poisson").detach(), expected, rtol=1e-6)
    expected = scipy.stats.norm.logpdf(x, mu, theta).sum(-1)
    np.testing.assert_allclose(batch.ours("normal").detach(), expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_known_positions_of_the_nonzeros_change_nothing(name):
    batch = Batch(torch.float32)
    rows, columns = torch.nonzero(batch.x, as_tuple=True)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    expected = batch.ours(name)
    shuffled = batch.ours(name, nonzero=(rows[order], columns[order]))
    torch.testing.assert_close(shuffled, expected)
    narrow = batch.ours(name, nonzero=(rows.int(), columns.int()))
    torch.testing.assert_close(narrow, expected)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson"])
def test_cells_without_counts(name):
    batch = Batch(torch.float64)
    batch.x = torch.zeros_like(batch.x)
    torch.testing.assert_close(batch.ours(name), batch.theirs(name))
    for gradient in torch.autograd.grad(batch.ours(name).sum(), batch.parameters(name)):
        assert torch.isfinite(gradient).all()


def test_integer_counts():
    batch = Batch(torch.float32)
    expected = batch.ours("nb")
    batch.x = batch.x.int()
    assert torch.equal(batch.ours("nb"), expected)


def test_float32_is_accurate_where_dispersion_is_tiny():
    # As theta grows the law becomes Poisson; lgamma(theta) alone is then beyond float32's digits.
    batch = Batch(torch.float32)
    mu, x = batch.mu.detach(), batch.x
    theta = torch.full((N_GENES,), 1e7, requires_grad=True)
    value = nb_log_prob(x, mu, theta)
    torch.testing.assert_close(value, poisson_log_prob(x, mu), rtol=1e-5, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), theta)
    assert float((gradient * theta.detach()).abs().max()) < 1e-3


@pytest.mark.parametrize("name", ["nb", "zinb"])
def test_extreme_parameters_stay_finite(name):
    x = torch.tensor([[0.0, 1.0, 5e4, 0.0, 3.0]])
    batch = Batch(torch.float32)
    batch.x = x
    batch.mu = torch.tensor([[0.0, 0.0, 1e6, 1e6, 1e-12]], requires_grad=True)
    batch.theta = torch.tensor([1e-4, 1e4, 1e-3, 1e-3, 1e6], requires_grad=True)
    batch.zi = torch.tensor([[-50.0, 50.0, 0.0, 50.0, -50.0]], requires_grad=True)
    value = batch.ours(name)
    assert torch.isfinite(value).all()
    for gradient in torch.autograd.grad(value.sum(), batch.parameters(name)):
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("shared", [True, False])
def test_half_precision_is_computed_in_float32(shared):
    batch = Batch(torch.float32, shared=shared)
    mu = batch.mu.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = nb_log_prob(batch.x, mu, batch.theta)
        value.sum().backward()
    expected = nb_log_prob(batch.x, mu.float(), batch.theta)
    assert value.dtype == torch.float32
    assert mu.grad.dtype == torch.bfloat16
    torch.testing.assert_close(value, expected)


def test_gradients_only_where_they_are_asked_for():
    batch = Batch(torch.float32)
    for parameter in (batch.mu, batch.theta):
        value = batch.ours("nb").sum()
        (alone,) = torch.autograd.grad(value, parameter)
        fixed = nb_log_prob(
            batch.x,
            batch.mu if parameter is batch.mu else batch.mu.detach(),
            batch.theta if parameter is batch.theta else batch.theta.detach(),
        )
        torch.testing.assert_close(torch.autograd.grad(fixed.sum(), parameter)[0], alone)


@pytest.mark.parametrize(
    ("function", "shapes", "named"),
    [
        (nb_log_prob, [(2, 4), (3,)], "mu"),
        (nb_log_prob, [(2, 3), (2,)], "theta"),
        (nb_log_prob, [(2, 3), (2, 1)], "theta"),
        (zinb_log_prob, [(2, 3), (3,), (3,)], "zi_logits"),
        (poisson_log_prob, [(3,)], "mu"),
        (normal_log_prob, [(2, 3), (1,)], "scale"),
    ],
)
def test_wrong_shapes_are_named(function, shapes, named):
    with pytest.raises(ValueError, match=rf"^{named} has shape \(.*expected"):
        function(torch.zeros(2, 3), *(torch.ones(shape) for shape in shapes))


# Ratios of gamma functions ------------------------------------------------------------------

THETA = np.logspace(-4, 8, 121)
GAMMA_COUNTS = [1, 2, 3, 5, 10, 40, 300]


def _tensors(count: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    theta = torch.tensor(THETA, dtype=dtype)
    return torch.full_like(theta, count), theta


@pytest.mark.parametrize("count", GAMMA_COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_rising(count, dtype):
    # lgamma(x + theta) - lgamma(theta) - x log(theta) = sum over k < x of log(1 + k / theta).
    x, theta = _tensors(count, dtype)
    exact = theta.double().numpy()
    expected = np.log1p(np.arange(count)[:, None] / exact).sum(0)
    value = _log_rising(x, theta, _stirling_remainder(theta)).double().numpy()
    if dtype == torch.float32:
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6 * count)
    else:  # evaluated as written: digits are lost as theta grows
        np.testing.assert_allclose(value[:60], expected[:60], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("count", GAMMA_COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_rising_slope(count, dtype):
    # digamma(x + theta) - digamma(theta) = sum over k < x of 1 / (theta + k).
    x, theta = _tensors(count, dtype)
    exact = theta.double().numpy()
    expected = (1 / (np.arange(count)[:, None] + exact)).sum(0)
    value = _log_rising_slope(x, theta, _digamma_excess(theta)).double().numpy()
    # Parameters are log(theta), so the error that matters is that of theta times the slope.
    atol = 1e-6 if dtype == torch.float32 else 1e-7
    np.testing.assert_allclose(value * exact, expected * exact, rtol=2e-6, atol=atol)


def test_slope_is_the_derivative():
    x = torch.tensor([1.0, 2.0, 7.0], dtype=torch.float64)
    theta = torch.tensor([0.3, 2.0, 9.0], dtype=torch.float64, requires_grad=True)
    rising = _log_rising(x, theta, _stirling_remainder(theta)) + x * torch.log(theta)
    (slope,) = torch.autograd.grad(rising.sum(), theta)
    with torch.no_grad():
        torch.testing.assert_close(_log_rising_slope(x, theta, _digamma_excess(theta)), slope)


def proportions_case(*, n_other=0, dtype=torch.float64):
    """Return logits, library sizes, dispersions, counts and their compressed rows; one is empty."""
    random = torch.Generator().manual_seed(3)
    logits = torch.randn(6, 9 + n_other, generator=random, dtype=dtype)
    library = torch.rand(6, generator=random, dtype=dtype) * 40 + 1
    theta = torch.rand(9, generator=random, dtype=dtype) * 3 + 0.1
    counts = torch.poisson(torch.rand(6, 9, generator=random) * 3, generator=random).to(dtype)
    counts[2] = 0
    rows = counts.to_sparse_csr()
    return logits, library, theta, counts, (rows.values(), rows.col_indices(), rows.crow_indices())


@pytest.mark.parametrize("n_other", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_likelihood_of_proportions_is_that_of_their_means(n_other, dtype):
    logits, library, theta, counts, rows = proportions_case(n_other=n_other, dtype=dtype)
    weight = torch.arange(1, 7, dtype=dtype)
    found = []
    for compressed in (True, False):
        given = logits.clone().requires_grad_(), theta.clone().requires_grad_()
        if compressed:
            value = nb_log_prob_of_logits(rows, given[0], library, given[1])
        else:
            mean = given[0].softmax(1)[:, :9] * library[:, None]
            value = nb_log_prob(counts, mean, given[1])
        (weight * value).sum().backward()
        found.append((value.detach(), *(tensor.grad for tensor in given)))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_of_proportions_are_those_of_finite_differences():
    logits, library, theta, _, rows = proportions_case(n_other=1)

    def value(logits, theta):
        return nb_log_prob_of_logits(rows, logits, library, theta)

    given = (logits.requires_grad_(), theta.requires_grad_())
    # The fits to Stirling's remainder are good to 1e-7, and so are differences to 1e-4.
    assert torch.autograd.gradcheck(value, given, eps=1e-3, atol=1e-3, rtol=1e-3)


def test_compressed_rows_that_do_not_fit_are_named():
    logits, library, theta, _, rows = proportions_case()
    with pytest.raises(ValueError, match="7 starts of rows, library sizes \\(5,\\)"):
        nb_log_prob_of_logits(rows, logits, library[:5], theta)
