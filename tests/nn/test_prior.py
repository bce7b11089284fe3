"""Priors given metadata: densities that are ones, draws that follow them, divergences."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, kl_divergence

from scvi_perturb.nn import MetadataSpec
from scvi_perturb.nn.metadata import GroupPrior, gaussian_kl, gaussian_log_prob

SPECS = (MetadataSpec("tissue", 2), MetadataSpec("age", 0))
KINDS = [("gaussian", 1), ("gaussian", 2), ("mixture", 1), ("mixture", 2), ("flow", 2)]
#: Half the side of the square that holds all of a density, and points along it.
SIDE, N_POINTS = 9.0, 361


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make(kind, n_dim, specs=SPECS):
    """Return a prior with weights of its own."""
    prior = GroupPrior(specs, n_dim, kind=kind, n_components=3).double().eval()
    prior.requires_grad_(requires_grad=False)
    for name, parameter in prior.named_parameters():
        parameter.normal_(std=0.15 if "chain" in name else 0.3)
    return prior


def fields(n, tissue=1, age=0.7):
    return {"tissue": torch.full((n,), tissue), "age": torch.full((n,), age, dtype=torch.float64)}


def grid(n_dim):
    """Return points of a grid `(n, n_dim)`, and the volume of each."""
    n = 4 * N_POINTS if n_dim == 1 else N_POINTS
    line = torch.linspace(-SIDE, SIDE, n, dtype=torch.float64)
    points = torch.cartesian_prod(*[line] * n_dim).reshape(-1, n_dim)
    return points, float(line[1] - line[0]) ** n_dim


@pytest.mark.parametrize("known", [True, False], ids=["known", "missing"])
@pytest.mark.parametrize(("kind", "n_dim"), KINDS)
def test_density_is_one_and_draws_follow_it(kind, n_dim, known):
    prior = make(kind, n_dim)
    points, volume = grid(n_dim)
    values = {} if known else {"tissue": -1, "age": math.nan}
    weight = prior.log_prob(points, fields(len(points), **values)).exp() * volume
    # Splines bend at knots, where a sum over a grid of step 0.05 is only of first order.
    assert float(weight.sum()) == pytest.approx(1.0, abs=2e-3)
    mean = (weight[:, None] * points).sum(0)
    variance = (weight[:, None] * (points - mean).square()).sum(0)
    fourth = (weight[:, None] * (points - mean) ** 4).sum(0)
    n = 20_000
    own = {k: v.float() if v.is_floating_point() else v for k, v in fields(n, **values).items()}
    drawn = prior.float().draw(own, n, torch.Generator().manual_seed(1)).double()
    assert ((drawn.mean(0) - mean).abs() < 4 * (variance / n).sqrt() + 2e-3).all()
    error = ((fourth - variance.square()) / n).sqrt()
    assert ((drawn.var(0) - variance).abs() < 4 * error + 1e-2 * variance).all()


def test_metadata_move_the_prior_and_what_is_missing_widens_it():
    prior = make("gaussian", 2)
    mean, log_variance = prior.moments(fields(1), 1)
    other, _ = prior.moments(fields(1, tissue=0), 1)
    assert (mean - other).abs().max() > 1e-2
    _, wider = prior.moments(fields(1, age=math.nan), 1)
    assert (wider > log_variance).all()


def test_gaussian_formulas_are_those_of_torch():
    mean, log_variance, other, other_log_variance, points = torch.randn(5, 7, 3)
    first = Independent(Normal(mean, (0.5 * log_variance).exp()), 1)
    second = Independent(Normal(other, (0.5 * other_log_variance).exp()), 1)
    found = gaussian_kl((mean, log_variance), (other, other_log_variance))
    torch.testing.assert_close(found, kl_divergence(first, second))
    torch.testing.assert_close(
        gaussian_log_prob(points, mean, log_variance), first.log_prob(points)
    )


@pytest.mark.parametrize("kind", ["gaussian", "mixture", "flow"])
def test_divergence_is_the_mean_log_ratio(kind):
    prior, n = make(kind, 2), 20_000
    mean = torch.tensor([[0.4, -0.8]], dtype=torch.float64).expand(n, -1)
    log_variance = torch.tensor([[-1.0, 0.2]], dtype=torch.float64).expand(n, -1)
    draw = mean + (0.5 * log_variance).exp() * torch.randn(n, 2, dtype=torch.float64)
    ratio = gaussian_log_prob(draw, mean, log_variance) - prior.log_prob(draw, fields(n))
    found = prior.divergence((mean, log_variance), draw, fields(n))
    assert float((found.mean() - ratio.mean()).abs()) <= 4 * float(ratio.std()) / n**0.5
    # Exact where it can be: no draw changes it.
    assert (float(found.std()) < 1e-9) == (kind == "gaussian")


def test_mixture_of_equals_is_a_gaussian():
    mixture, gaussian = make("mixture", 2), make("gaussian", 2)
    gaussian.load_state_dict(mixture.state_dict(), strict=False)
    mixture.offsets.zero_()
    mixture.log_variances.zero_()
    points = torch.randn(20, 2, dtype=torch.float64)
    expected = gaussian.log_prob(points, fields(20))
    torch.testing.assert_close(mixture.log_prob(points, fields(20)), expected)


def test_without_metadata_there_is_one_prior():
    prior = make("gaussian", 2, specs=())
    drawn = prior.draw({}, 5, torch.Generator().manual_seed(0))
    assert drawn.shape == (5, 2)
    assert prior.log_prob(drawn.double(), {}).shape == (5,)


def test_it_tells_which_fields_it_knows():
    prior = make("gaussian", 1)
    prior.metadata.prepare({"tissue": torch.tensor([1]), "age": torch.tensor([0.5])})
    asked = {"tissue": torch.tensor([0, 1, -1]), "age": torch.tensor([1.0, torch.nan, 2.0])}
    columns = enumerate(prior.metadata.specs)
    known = {s.name: prior.metadata.present(i, asked[s.name]) for i, s in columns}
    assert {k: v.tolist() for k, v in known.items()} == {
        "tissue": [False, True, False],
        "age": [True, False, True],
    }
