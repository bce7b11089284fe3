"""Stage two as a flow: what is learnt, both ways, densities."""

from __future__ import annotations

import math

import pytest
import torch

from scvi_perturb.generative import SOLVERS, SamplerConfig
from scvi_perturb.module import (
    ConditionBatch,
    ConditionTensors,
    FlowConfig,
    LatentFlow,
    LatentSplines,
)
from tests.module._small import N_LATENT, stir

#: Control, A, B, A+B at other doses.
TABLE = ConditionTensors(
    torch.tensor([[0, 0], [0, 0], [1, 0], [0, 1]]),
    torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 1.0], [4.0, 0.5]]),
    torch.tensor([[False, False], [True, False], [True, False], [True, True]]),
    torch.full((4,), math.nan),
)
VECTORS = torch.tensor([[1.0, -2, 0, 3], [0.5, 0, -4, 1]])
SMALL = {"width": 16, "n_blocks": 1, "n_condition": 8, "n_neighbours": 1, "n_transforms": 2}
KINDS = {
    "control": {"source": "control"},
    "noise": {"source": "noise"},
    "coupling": {"source": "noise", "kind": "coupling"},
}


def make(kind, *, stirred=True, **config):
    made = FlowConfig(**SMALL, **{**KINDS[kind], **config})
    torch.manual_seed(0)
    module = (LatentSplines if kind == "coupling" else LatentFlow)(
        N_LATENT, TABLE, n_identities=2, features={}, n_contexts=3, config=made
    )
    random = torch.Generator().manual_seed(3)
    latents = 1.5 + 2 * torch.randn(200, N_LATENT, generator=random)
    module.prepare(
        latents, 0.7 * latents, seen=torch.ones(2, dtype=torch.bool), reference_dose=torch.ones(2)
    )
    module.prepare_additive(VECTORS, torch.ones(2), log_ec50=0.5, log_slope=0.2)
    if stirred:
        stir(module.average, std=0.1)
    return module.double().eval()


def cell_batch(n=40, seed=1):
    random = torch.Generator().manual_seed(seed)
    reference = 1.5 + 2 * torch.randn(n, N_LATENT, generator=random, dtype=torch.float64)
    table = TABLE._replace(dose=TABLE.dose.double(), time=TABLE.time.double())
    return ConditionBatch(table, torch.arange(n) % 4, reference, torch.zeros(n, dtype=torch.long))


def follow(module, cells, latent, times, sampler=None):
    sampler = sampler or SamplerConfig("rk4", 400)
    return list(module.follow(cells, latent, times=times, sampler=sampler))


@pytest.mark.parametrize(
    ("kind", "guidance"),
    [("control", 1.0), ("control", 1.7), ("noise", 1.0), ("noise", 1.7), ("coupling", 1.0)],
)
def test_the_way_back_is_the_way_forth(kind, guidance):
    module, cells = make(kind), cell_batch()
    sampler = SamplerConfig("rk4", 1600, guidance)
    (end,) = follow(module, cells, cells.reference, (0.0, 1.0), sampler)
    assert float((end - cells.reference).abs().max()) > 0.1
    (back,) = follow(module, cells, end, (1.0, 0.0), sampler)
    assert float((back - cells.reference).abs().max()) <= 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_each_other(kind):
    module, cells = make(kind), cell_batch()
    (end,) = follow(module, cells, cells.reference, (0.0, 1.0))
    some = torch.tensor([3, 17, 8])
    (alone,) = follow(module, cells.rows(some), cells.reference[some], (0.0, 1.0))
    torch.testing.assert_close(end[some], alone)


def test_an_untrained_flow_moves_cells_by_the_additive_part():
    module, cells = make("control", stirred=False), cell_batch()
    times = (0.0, 0.25, 1.0)
    quarter, end = follow(module, cells, cells.reference, times)
    move = module.additive(*TABLE[:3])[cells.which]
    torch.testing.assert_close(end - cells.reference, move)
    torch.testing.assert_close(quarter - cells.reference, 0.25 * move)


@pytest.mark.parametrize("kind", ["control", "noise"])
def test_the_loss_is_that_of_the_field_that_is_followed(kind):
    """The velocity that is learnt and the field that is followed are in the same coordinates.

    If the network is right everywhere for a target that is a constant beyond the additive part,
    cells end exactly there.
    """
    module = make(kind, stirred=False, null_fraction=0.0, condition_dropout=0.0).float()
    target = torch.tensor([0.3, -1.0, 2.0, 0.5])
    n, sure = 64, torch.full((64, N_LATENT), -60.0)
    code = torch.ones(n, dtype=torch.long)
    centre = module.additive_effect(TABLE.rows(torch.tensor([1])))
    reference = cell_batch(n).reference.float()
    batch = {
        "target_mean": (target + centre).expand(n, -1),
        "target_log_variance": sure,
        "reference_mean": reference,
        "reference_log_variance": sure,
        "condition": code,
        "context": torch.zeros(n, dtype=torch.long),
    }
    if kind == "control":
        with torch.no_grad():
            module.average.network.output.bias.copy_(target / module.target_scale)
        loss = module.loss(batch).loss
        assert float(loss) < 1e-9
        cells = ConditionBatch(TABLE, code, reference, batch["context"])
        (end,) = follow(module, cells, reference, (0.0, 1.0), SamplerConfig("euler", 4))
        torch.testing.assert_close(end - reference, batch["target_mean"], atol=1e-4, rtol=1e-4)
    else:
        # Nothing is predicted of a constant target: the loss is noise and target.
        scaled = (target - module.target_shift) / module.target_scale
        expected = 1 + float(scaled.square().mean())
        torch.manual_seed(0)
        losses = torch.stack([module.loss(batch).loss for _ in range(50)])
        error = losses.std() / 50**0.5
        assert abs(float(losses.mean()) - expected) < 4 * float(error)


@pytest.mark.parametrize("kind", ["noise", "coupling"])
def test_densities_are_those_of_what_is_drawn(kind):
    """The density at a drawn point is that of its noise by the Jacobian of the whole map."""
    module, cells = make(kind), cell_batch(6)
    sampler = SamplerConfig("rk4", 80)
    start = cells.reference + 0.5
    (end,) = follow(module, cells, start, (0.0, 1.0), sampler)
    found = module.log_density(cells, end, sampler=sampler, n_probes=None, generator=None)
    torch.testing.assert_close(found.source, start, atol=1e-5, rtol=0)
    assert float(found.step_error.max()) < 1e-3
    scale, origin = module.target_scale, end - end
    for i in range(6):
        part = cells.rows(torch.tensor([i]))

        def through(x, part=part):
            return follow(module, part, x[None], (0.0, 1.0), sampler)[0][0]

        step, rows = 1e-5, []
        for j in range(N_LATENT):
            shift = torch.zeros(N_LATENT, dtype=torch.float64)
            shift[j] = step
            rows.append((through(start[i] + shift) - through(start[i] - shift)) / (2 * step))
        volume = torch.stack(rows).det().abs().log()
        origin = (
            part.reference[0]
            + module.target_shift
            + module.additive_effect(part.conditions)[part.which][0]
        )
        noise = (start[i] - origin) / scale
        normal = torch.distributions.Normal(0.0, 1.0).log_prob(noise).sum() - scale.log().sum()
        torch.testing.assert_close(found.log_density[i], normal - volume, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flow_learns(kind):
    module = make(kind, stirred=False, null_fraction=0.0, condition_dropout=0.0).float().train()
    optimiser = torch.optim.Adam(module.learned.parameters(), lr=5e-3)
    random = torch.Generator().manual_seed(0)
    n = 256
    sure = torch.full((n, N_LATENT), -60.0)
    losses = []
    torch.manual_seed(0)
    module.before_steps()
    for _ in range(60):
        reference = 1.5 + 2 * torch.randn(n, N_LATENT, generator=random)
        batch = {
            "target_mean": 0.4 * reference,
            "target_log_variance": sure,
            "reference_mean": reference,
            "reference_log_variance": sure,
            "condition": torch.randint(1, 4, (n,), generator=random),
            "context": torch.zeros(n, dtype=torch.long),
        }
        loss = module.loss(batch).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        module.after_step()
        losses.append(float(loss.detach()))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@pytest.mark.parametrize("kind", KINDS)
def test_samples_follow_the_seed(kind):
    module, cells = make(kind), cell_batch()

    def draw(seed):
        random = torch.Generator().manual_seed(seed)
        return module.sample_latent(cells, sampler=SamplerConfig(n_evaluations=4), generator=random)

    assert torch.equal(draw(0), draw(0))
    assert torch.equal(draw(0), draw(1)) == (kind == "control"), "noise is drawn, cells are not"


@pytest.mark.parametrize("kind", ["control", "noise"])
def test_without_guidance_the_condition_is_not_known(kind):
    """An untrained network adds nothing: what is left is the additive part, by its guidance."""
    module, cells = make(kind, stirred=False), cell_batch()
    move = module.additive(*TABLE[:3])[cells.which]
    for scale in (0.0, 1.0, 2.0):
        (end,) = follow(
            module, cells, cells.reference, (0.0, 1.0), SamplerConfig("euler", 10, scale)
        )
        # From noise the frame is at the condition's centre from the start.
        away = (scale - 1.0) * move if kind == "noise" else scale * move
        torch.testing.assert_close(end - cells.reference, away)


@pytest.mark.parametrize("solver", SOLVERS)
def test_solvers_agree_where_steps_are_fine(solver):
    module, cells = make("control"), cell_batch()
    (fine,) = follow(module, cells, cells.reference, (0.0, 1.0))
    sampler = SamplerConfig(solver, {"euler": 2000, "heun": 400, "rk4": 200}[solver])
    (end,) = follow(module, cells, cells.reference, (0.0, 1.0), sampler)
    torch.testing.assert_close(end, fine, atol=5e-3 if solver == "euler" else 1e-4, rtol=0)


def test_splines_have_no_guidance():
    module, cells = make("coupling"), cell_batch()
    with pytest.raises(ValueError, match=r"guidance_scale=2\.0"):
        follow(module, cells, cells.reference, (0.0, 1.0), SamplerConfig("heun", 4, 2.0))


def test_splines_have_no_points_between_their_ends():
    module, cells = make("coupling"), cell_batch()
    with pytest.raises(ValueError, match="times 0 and 1"):
        follow(module, cells, cells.reference, (0.0, 0.5))


def test_configurations_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="source='noise'"):
        FlowConfig(kind="coupling")
    with pytest.raises(ValueError, match="source='data'"):
        FlowConfig(source="data")
    with pytest.raises(ValueError, match="coupling='greedy'"):
        FlowConfig(coupling="greedy")
    with pytest.raises(ValueError, match="n_transforms=0"):
        FlowConfig(n_transforms=0)
