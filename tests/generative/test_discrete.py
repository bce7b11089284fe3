"""Diffusion of discrete states, against enumeration on a tiny space."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_perturb.generative import DiscreteDiffusion

K = 3
TRANSITIONS = ["absorbing", "uniform"]
DATA = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


def forward(process, t):
    """Return the matrix `q(x_t | x_0)`, one row a state at time 0."""
    alpha = float(process.alpha(torch.tensor(t, dtype=torch.float64)))
    noise = torch.zeros(process.n_symbols, dtype=torch.float64)
    if process.transition == "absorbing":
        noise[K] = 1
    else:
        noise[:] = 1 / K
    return alpha * torch.eye(process.n_symbols, dtype=torch.float64) + (1 - alpha) * noise


def between(process, s, t):
    """Return the matrix `q(x_t | x_s)` by its definition: what leads from time s to t."""
    return torch.linalg.solve(forward(process, s), forward(process, t))


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize(("s", "t"), [(0.2, 0.6), (0.55, 0.6), (0.1, 0.95)])
def test_posterior_is_that_of_enumeration(transition, s, t):
    process = DiscreteDiffusion(K, transition)
    n = process.n_symbols
    q_s, q_st = forward(process, s)[:K], between(process, s, t)
    joint = DATA[:, None, None] * q_s[:, :, None] * q_st[None]  # x_0, x_s, x_t
    for x_t in range(n):
        truth = joint[:, :, x_t].sum(0) / joint[:, :, x_t].sum()
        data = joint[:, :, x_t].sum(1) / joint[:, :, x_t].sum()
        found = process.posterior(torch.tensor([x_t]), data[None], t, s)[0]
        torch.testing.assert_close(found, truth, atol=1e-10, rtol=0)
        assert float(found.sum()) == pytest.approx(1)


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_noised_states_have_their_law(transition):
    process = DiscreteDiffusion(K, transition)
    n, t = 40_000, 0.4
    x_0 = torch.full((n, 1), 1)
    random = torch.Generator().manual_seed(0)
    x_t = process.corrupt(x_0, torch.full((n,), t), random)
    share = torch.bincount(x_t[:, 0], minlength=process.n_symbols).double() / n
    truth = forward(process, t)[1]
    error = (share - truth).abs() / (truth * (1 - truth) / n).sqrt().clamp_min(1e-9)
    assert float(error.max()) < 4


@pytest.mark.parametrize("transition", TRANSITIONS)
@pytest.mark.parametrize("n_evaluations", [1, 5, 20])
def test_one_gene_is_drawn_from_its_law(transition, n_evaluations):
    """With the true chances of the data, any number of steps draws one variable exactly."""
    process = DiscreteDiffusion(K, transition)
    calls = []

    def classify(x_t, t, places):
        calls.append(t)
        weight = DATA * forward(process, t)[:K].T[x_t[places]]
        return weight / weight.sum(-1, keepdim=True)

    n = 20_000
    drawn = process.sample(
        classify, (n, 1), n_evaluations=n_evaluations, generator=torch.Generator().manual_seed(1)
    )
    assert len(calls) == n_evaluations
    share = np.bincount(drawn[:, 0], minlength=K) / n
    error = np.abs(share - DATA.numpy()) / np.sqrt(DATA.numpy() * (1 - DATA.numpy()) / n)
    assert error.max() < 4


def test_more_steps_keep_what_goes_together():
    """Two genes that are always equal: one step draws them apart, many steps together."""
    process = DiscreteDiffusion(2, "absorbing")

    def classify(x_t, t, places):
        other = x_t.flip(1)[places]
        known = other < 2
        chances = torch.nn.functional.one_hot(other.clamp_max(1), 2).double()
        return torch.where(known[..., None], chances, torch.full_like(chances, 0.5))

    agree = {}
    for n in (1, 50):
        random = torch.Generator().manual_seed(0)
        drawn = process.sample(classify, (4000, 2), n_evaluations=n, generator=random)
        agree[n] = float((drawn[:, 0] == drawn[:, 1]).double().mean())
    assert abs(agree[1] - 0.5) < 4 * 0.5 / 4000**0.5
    assert agree[50] > 0.95


@pytest.mark.parametrize("transition", TRANSITIONS)
def test_steps_follow_the_posterior(transition):
    """Shares of states half way are those that the posterior of one step from noise gives."""
    process = DiscreteDiffusion(K, transition)
    seen = {}

    def classify(x_t, t, places):
        seen[t] = x_t.clone()
        return DATA.expand(int(places.sum()), -1)

    n = 40_000
    process.sample(classify, (n, 1), n_evaluations=2, generator=torch.Generator().manual_seed(2))
    first, half = (seen[t][:, 0] for t in (1.0, 0.5))
    truth = process.posterior(first, DATA.expand(n, -1), 1.0, 0.5).mean(0)
    share = torch.bincount(half, minlength=process.n_symbols).double() / n
    assert float(((share - truth).abs() / (truth / n).sqrt()).max()) < 4


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="transition='gaussian'"):
        DiscreteDiffusion(3, "gaussian")
    with pytest.raises(ValueError, match="n_evaluations=0"):
        DiscreteDiffusion(3).sample(
            lambda x, t, places: x, (1, 1), n_evaluations=0, generator=torch.Generator()
        )
