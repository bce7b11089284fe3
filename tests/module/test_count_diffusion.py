"""Diffusion of binned counts."""

from __future__ import annotations

import math

import pytest
import torch

from scvi_perturb.generative import SamplerConfig
from scvi_perturb.module import ConditionBatch, ConditionTensors, CountDiffusion, DiffusionConfig
from scvi_perturb.module.count_diffusion import RawCounts, bin_edges, bins_of, draw_in_bins
from tests.module._small import make_batch

# Count diffusion -----------------------------------------------------------------------


N_GENES = 5
TABLE = ConditionTensors(
    torch.zeros(2, 1, dtype=torch.long),
    torch.ones(2, 1),
    torch.tensor([[False], [True]]),
    torch.full((2,), math.nan),
)


def make(**config):
    given = {"width": 32, "n_blocks": 1, "n_condition": 8, "n_bins": 8, **config}
    torch.manual_seed(0)
    module = CountDiffusion(
        N_GENES, TABLE, n_identities=1, features={}, n_contexts=1, config=DiffusionConfig(**given)
    )
    counts = torch.poisson(torch.full((300, N_GENES), 2.0))
    prepare(module, counts)
    return module


def prepare(module, counts):
    latents = counts.log1p()
    module.prepare(
        latents, latents, seen=torch.ones(1, dtype=torch.bool), reference_dose=torch.ones(1)
    )


def batch(reference, target, code):
    sure = torch.full_like(reference, -60.0)
    return {
        "target_mean": target.log1p() - reference.log1p(),
        "target_log_variance": sure,
        "reference_mean": reference.log1p(),
        "reference_log_variance": sure,
        "condition": torch.full((len(reference),), code),
        "context": torch.zeros(len(reference), dtype=torch.long),
    }


def draw(module, reference, code, **sampler):
    n = len(reference)
    which, context = torch.full((n,), code), torch.zeros(n, dtype=torch.long)
    made = module.sample_latent(
        ConditionBatch(TABLE, which, reference.log1p(), context),
        sampler=SamplerConfig(**sampler),
        generator=torch.Generator().manual_seed(0),
    )
    return made.expm1()


@pytest.mark.parametrize("transition", ["absorbing", "uniform"])
def test_an_untrained_network_draws_the_frequencies(transition):
    module = make(transition=transition).eval()
    with torch.no_grad():
        module.average.network.head[-1].weight.zero_()
        module.average.network.head[-1].bias.zero_()
    drawn = draw(module, torch.full((4000, N_GENES), 2.0), 1, n_evaluations=5)
    assert (drawn.round() - drawn).abs().max() < 1e-4
    shares = module.average.network.bias.softmax(-1)[:, :4]
    found = torch.stack([(drawn.round() == k).float().mean(0) for k in range(4)], dim=1)
    assert ((found - shares).abs() < 5 * (shares * (1 - shares) / 4000).sqrt()).all()


@pytest.mark.parametrize("transition", ["absorbing", "uniform"])
def test_it_learns_what_a_perturbation_does(transition):
    """The perturbation adds three to the first gene; the control cell says the others."""
    module = make(transition=transition, null_fraction=0.3, ema_decay=0.95).train()
    optimiser = torch.optim.Adam(module.learned.parameters(), lr=1e-2)
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    module.before_steps()
    added = torch.tensor([3.0, 0, 0, 0, 0])
    for _ in range(400):
        reference = torch.randint(0, 4, (128, N_GENES), generator=random).float()
        loss = module.loss(batch(reference, reference + added, 1)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        module.after_step()
    module.eval()
    reference = torch.randint(0, 4, (500, N_GENES), generator=random).float()
    moved = draw(module, reference, 1, n_evaluations=20) - reference
    same = draw(module, reference, 0, n_evaluations=20) - reference
    assert float((moved.mean(0) - added).abs().max()) < 0.5
    assert float(same.mean(0).abs().max()) < 0.5, "control in, control out"
    assert float(moved.abs().mean() - 0.6) < 0.5, "the control cell's counts are kept"


def test_a_steps_loss_is_of_noised_values_of_some_genes():
    module = make(n_loss_genes=2)
    noised = torch.full((400, N_GENES), module.process.n_states)
    noised[:, 0] = 3
    counted = module.train()._counted(noised)
    assert int(counted.all(0).sum()) == int(counted.any(0).sum()) <= 2
    assert not counted[:, 0].any()
    assert torch.equal(module.eval()._counted(noised), noised == module.process.n_states)


def test_with_uniform_noise_the_loss_of_some_genes_is_on_average_that_of_all():
    module = make(transition="uniform", n_loss_genes=2)
    counts = torch.poisson(torch.full((400, N_GENES), 2.0))
    few = batch(counts, counts, 1)
    some = torch.stack([module.train().loss(few).loss.detach() for _ in range(60)])
    whole = torch.stack([module.eval().loss(few).loss.detach() for _ in range(60)])
    error = (some.var() / 60 + whole.var() / 60).sqrt()
    assert float((some.mean() - whole.mean()).abs() / error) < 4


def test_guidance_overstates_the_condition():
    module = make().eval()
    with torch.no_grad():
        for parameter in module.average.parameters():
            parameter.normal_(std=0.4)
    reference = torch.full((200, N_GENES), 2.0)
    plain, guided = (draw(module, reference, 1, guidance_scale=s) for s in (1.0, 3.0))
    assert float((plain - guided).abs().max()) > 0


def test_training_again_keeps_what_was_learnt():
    module = make()
    module.n_updates += 1
    before = module.learned.network.bias.clone()
    prepare(module, torch.poisson(torch.full((300, N_GENES), 4.0)))
    assert torch.equal(module.learned.network.bias, before)


def test_no_gene_stays_masked():
    """The last step reveals everything, exactly: one mask in millions would be no count."""
    process = make().process
    last = process.posterior(
        torch.tensor([process.n_states]), torch.full((1, 8), 1 / 8, dtype=torch.float64), 0.05, 0.0
    )
    assert float(last[0, -1]) == 0.0


# Bins ----------------------------------------------------------------------------------


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
