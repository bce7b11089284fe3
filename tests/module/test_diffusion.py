"""Stage two: what is learnt, its average, and how latents are drawn."""

from __future__ import annotations

import math

import pytest
import torch

from scvi_perturb.generative import SAMPLERS, SamplerConfig
from scvi_perturb.module import ConditionBatch, ConditionTensors, DiffusionConfig, LatentDiffusion
from tests.module._small import N_LATENT, stir

#: Control, A, B, A+B at other doses.
TABLE = ConditionTensors(
    torch.tensor([[0, 0], [0, 0], [1, 0], [0, 1]]),
    torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 1.0], [4.0, 0.5]]),
    torch.tensor([[False, False], [True, False], [True, False], [True, True]]),
    torch.full((4,), math.nan),
)
EXACT_LOG_VARIANCE = -60.0
VECTORS = torch.tensor([[1.0, -2, 0, 3], [0.5, 0, -4, 1]])


def make(*, n_contexts=3, **config):
    given = {"width": 16, "n_blocks": 1, "n_condition": 8, "n_neighbours": 1, **config}
    return LatentDiffusion(
        N_LATENT,
        TABLE,
        n_identities=2,
        features={},
        n_contexts=n_contexts,
        config=DiffusionConfig(**given),
    )


def stirred(**config):
    """Return a module of which the average has weights of its own, ready to draw."""
    module = make(**config)
    stir(module.average)
    return module.eval()


def batch(codes, *, seed=0, context=0):
    random = torch.Generator().manual_seed(seed)
    n = len(codes)
    values = {
        key: 2 + torch.randn(n, N_LATENT, generator=random) for key in ("target", "reference")
    }
    sure = torch.full((n, N_LATENT), EXACT_LOG_VARIANCE)
    return {
        "target_mean": values["target"],
        "target_log_variance": sure,
        "reference_mean": values["reference"],
        "reference_log_variance": sure,
        "condition": torch.tensor(codes),
        "context": torch.full((n,), context),
    }


def exact(**config):
    """Return a module of which the loss of a cell is the mean square of its scaled target.

    It predicts the data, starts at zero, and weighs all times alike.
    """
    plain = {"condition_dropout": 0.0, "null_fraction": 0.0}
    return make(parameterisation="x0", min_snr_gamma=None, **{**plain, **config}).train()


def additive(module, scale=1.0):
    ones = torch.ones(2)
    module.prepare_additive(scale * VECTORS, ones, log_ec50=0.5, log_slope=0.2)
    return module


def losses(module, tensors):
    return module.loss(tensors).reconstruction_loss["reconstruction_loss"]


def seeded(call, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return call()


CODES = [1, 2, 3, 1, 2, 3]


def test_displacements_are_scaled_and_not_shifted():
    module, tensors = exact(), batch(CODES)
    targets = tensors["target_mean"]
    seen = torch.ones(2, dtype=torch.bool)
    module.prepare(tensors["reference_mean"], targets, seen=seen, reference_dose=torch.ones(2))
    torch.testing.assert_close(module.latent_shift, tensors["reference_mean"].mean(0))
    torch.testing.assert_close(module.latent_scale, tensors["reference_mean"].std(0))
    expected = (targets / targets.std(0)).square().mean(1)
    torch.testing.assert_close(losses(module, tensors), expected)


def test_latents_themselves_are_whitened():
    module, tensors = exact(reference="population"), batch(CODES)
    targets = tensors["target_mean"]
    seen = torch.ones(2, dtype=torch.bool)
    module.prepare(targets, targets, seen=seen, reference_dose=torch.ones(2))
    white = (targets - targets.mean(0)) / targets.std(0)
    torch.testing.assert_close(losses(module, tensors), white.square().mean(1))


def test_null_pairs_have_no_displacement():
    module = additive(exact(null_fraction=1.0))
    assert torch.equal(losses(module, batch(CODES)), torch.zeros(len(CODES)))


def test_null_pairs_are_as_many_as_asked_for():
    module, tensors = additive(exact(null_fraction=0.25)), batch([1] * 4000)
    share = (losses(module, tensors) == 0).float().mean()
    assert abs(share - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)


@pytest.mark.parametrize("reference", ["population", "none"])
def test_there_are_no_null_pairs_where_no_cell_is_the_reference(reference):
    module = exact(reference=reference, null_fraction=1.0)
    assert (losses(module, batch(CODES)) > 0).all()


def test_null_pairs_are_under_no_perturbation():
    module = exact(null_fraction=1.0)
    given = module.examples(batch(CODES)).condition
    control = module.learned.encoder(*TABLE.rows(torch.zeros(1, dtype=torch.long)))
    torch.testing.assert_close(given, control.expand_as(given))


def test_what_adds_up_is_not_left_to_the_network():
    module, tensors = additive(exact()), batch(CODES)
    rows = TABLE.rows(tensors["condition"])
    tensors["target_mean"] = module.additive(rows.component, rows.dose, rows.mask)
    torch.testing.assert_close(losses(module, tensors), torch.zeros(len(CODES)))


def test_network_without_the_condition_does_not_know_what_adds_up():
    module, tensors = additive(exact(condition_dropout=1.0)), batch(CODES)
    expected = tensors["target_mean"].square().mean(1)
    torch.testing.assert_close(losses(module, tensors), expected)


def test_condition_is_hidden_in_training_only():
    module, tensors = additive(exact(condition_dropout=1.0)).eval(), batch(CODES)
    rows = TABLE.rows(tensors["condition"])
    centre = module.additive(rows.component, rows.dose, rows.mask)
    expected = (tensors["target_mean"] - centre).square().mean(1)
    torch.testing.assert_close(losses(module, tensors), expected)


def test_latents_are_drawn_from_their_posteriors():
    module, tensors = exact(), batch([1] * 3000)
    tensors["target_mean"] = torch.zeros(3000, N_LATENT)
    tensors["target_log_variance"] = torch.full((3000, N_LATENT), math.log(4.0))
    assert losses(module, tensors).mean().item() == pytest.approx(4, rel=0.1)


def test_average_starts_as_the_weights_and_moves_towards_them():
    module = make(ema_decay=0.9)
    start = {k: v.clone() for k, v in module.average.state_dict().items()}
    assert all(torch.equal(v, start[k]) for k, v in module.learned.state_dict().items())
    stir(module.learned)
    learned = dict(module.learned.named_parameters())
    expected = dict(start)
    module.before_steps()
    for n in range(1, 4):
        module.after_step()
        decay = min(0.9, (1 + n) / (10 + n))
        for name, value in learned.items():
            expected[name] = decay * expected[name] + (1 - decay) * value
    for name, value in module.average.named_parameters():
        torch.testing.assert_close(value, expected[name])
    assert int(module.n_updates) == 3


def test_average_arrives_and_never_learns_by_itself():
    module = make(ema_decay=0.5)
    stir(module.learned)
    module.before_steps()
    for _ in range(60):
        module.after_step()
    learned = dict(module.learned.named_parameters())
    for name, value in module.average.named_parameters():
        torch.testing.assert_close(value, learned[name])
        assert not value.requires_grad
        assert learned[name].requires_grad


def test_weights_are_learnt_and_their_average_is_validated():
    module, tensors = make(dropout=0.0), batch(CODES)
    stir(module.average)

    def loss(module):
        return seeded(lambda: losses(module, tensors))

    validation, training = loss(module.eval()), loss(module.train())
    stir(module.learned)
    assert torch.equal(loss(module.eval()), validation)
    assert not torch.equal(loss(module.train()), training)
    module.loss(tensors).loss.backward()
    assert all(p.grad is None for p in module.average.parameters())


def test_prepared_components_are_known_to_both():
    module = make()
    seen, doses = torch.tensor([True, False]), torch.tensor([3.0, 5.0])
    latents = torch.randn(9, N_LATENT)
    module.prepare(latents, latents, seen=seen, reference_dose=doses)
    for nets in (module.learned, module.average):
        assert torch.equal(nets.encoder.seen, seen)
        assert torch.equal(nets.encoder.reference_dose, doses)


def test_constant_latent_does_not_divide_by_zero():
    module, constant = make(), torch.ones(9, N_LATENT)
    seen = torch.ones(2, dtype=torch.bool)
    module.prepare(constant, constant, seen=seen, reference_dose=torch.ones(2))
    assert torch.isfinite(losses(module.train(), batch(CODES))).all()


def draw(module, which=(0, 1, 2, 3), *, seed=0, context=0, sampler=None, reference=None):
    """Draw latents of cells under conditions of the table."""
    which = torch.as_tensor(which)
    if reference is None:
        reference = torch.randn(len(which), N_LATENT, generator=torch.Generator().manual_seed(9))
    where = torch.full((len(which),), context) if isinstance(context, int) else context
    return module.sample_latent(
        ConditionBatch(TABLE, which, reference, where),
        sampler=sampler or SamplerConfig(n_evaluations=4),
        generator=torch.Generator().manual_seed(seed),
    )


@pytest.mark.parametrize("method", sorted(SAMPLERS))
def test_same_seed_same_latents(method):
    module, sampler = stirred(), SamplerConfig(method, n_evaluations=4)
    first = draw(module, sampler=sampler)
    with torch.random.fork_rng():
        torch.manual_seed(77)
        assert torch.equal(draw(module, sampler=sampler), first)
    assert not torch.equal(draw(module, seed=1, sampler=sampler), first)
    assert first.shape == (4, N_LATENT)
    assert torch.isfinite(first).all()


def test_latents_are_drawn_with_the_average():
    module = stirred()
    before = draw(module)
    stir(module.learned)
    assert torch.equal(draw(module), before)
    stir(module.average)
    assert not torch.equal(draw(module), before)


def test_conditions_in_one_batch_are_as_alone():
    module = additive(stirred(), 0.3)
    which = [3, 0, 1, 3, 2]
    together = draw(module, which)
    for code in range(4):
        own = [i for i, w in enumerate(which) if w == code]
        alone = draw(module, [code] * len(which))
        torch.testing.assert_close(together[own], alone[own], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together[0], draw(module, [1] * 5)[0], atol=1e-2)


def guided(scale):
    return SamplerConfig(n_evaluations=4, guidance_scale=scale)


def test_guidance_of_one_is_the_conditional():
    module = additive(stirred(), 0.3)
    conditional = draw(module, sampler=guided(1.0))
    near = draw(module, sampler=guided(1.0 + 1e-5))
    torch.testing.assert_close(near, conditional, rtol=1e-3, atol=1e-3)
    torch.nn.init.normal_(module.average.hidden_condition)
    assert torch.equal(draw(module, sampler=guided(1.0)), conditional)
    assert not torch.allclose(draw(module, sampler=guided(3.0)), conditional, atol=1e-2)


def test_guidance_of_zero_does_not_know_the_condition():
    module = additive(stirred(), 0.3)
    # Steps are of second order, and not exact under the shift by what adds up.
    sampler = SamplerConfig(n_evaluations=40, guidance_scale=0.0)
    free = draw(module, [1] * 4, sampler=sampler)
    torch.testing.assert_close(draw(module, [3] * 4, sampler=sampler), free, rtol=0, atol=0.02)
    stir(module.average.encoder)
    assert torch.equal(draw(module, [1] * 4, sampler=sampler), free)
    assert not torch.allclose(draw(module, [1] * 4), free, atol=0.1)


def test_guidance_asks_the_network_twice():
    module = stirred()
    calls = []
    module.average.network.register_forward_hook(lambda *_: calls.append(1))
    for scale, expected in ((1.0, 4), (2.0, 8)):
        calls.clear()
        draw(module, sampler=guided(scale))
        assert len(calls) == expected


def test_contexts_never_trained_on_count_as_unknown():
    module = stirred(context_embedding=True)
    known = [draw(module, context=code) for code in range(3)]
    unknown = [draw(module, context=code) for code in (3, 99, -1)]
    for found in unknown[1:]:
        assert torch.equal(found, unknown[0])
    for one in known:
        assert not torch.allclose(one, unknown[0], atol=1e-3)
    assert not torch.allclose(known[0], known[1], atol=1e-3)
    mixed = draw(module, context=torch.tensor([0, 99, 1, 3]))
    expected = torch.stack([known[0][0], unknown[0][1], known[1][2], unknown[0][3]])
    torch.testing.assert_close(mixed, expected, rtol=1e-4, atol=1e-4)


def test_contexts_without_embeddings_do_not_matter():
    module = stirred()
    assert module.average.context is None
    assert torch.equal(draw(module, context=0), draw(module, context=2))


def test_some_contexts_are_unknown_while_training():
    module = make(context_embedding=True).train()
    codes = torch.zeros(4000, dtype=torch.long)
    share = (module._context_row(codes) == 3).float().mean()
    assert abs(share - 0.1) < 4 * math.sqrt(0.09 / 4000)
    assert (module.eval()._context_row(codes) == 0).all()


def test_network_that_knows_nothing_moves_cells_by_what_adds_up():
    # Predicting no data beyond the additive part: the reference plus its effect comes out.
    module = additive(make(parameterisation="x0")).eval()
    reference = torch.randn(4, N_LATENT)
    centre = module.additive(TABLE.component, TABLE.dose, TABLE.mask)
    found = draw(module, reference=reference, sampler=SamplerConfig(n_evaluations=20))
    torch.testing.assert_close(found, reference + centre, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(centre[0], torch.zeros(N_LATENT))


@pytest.mark.parametrize("reference", ["population", "none"])
def test_latents_are_drawn_at_the_scale_of_the_screen(reference):
    module = make(parameterisation="x0", reference=reference).eval()
    latents = 5 + 2 * torch.randn(200, N_LATENT)
    seen = torch.ones(2, dtype=torch.bool)
    module.prepare(latents, latents, seen=seen, reference_dose=torch.ones(2))
    found = draw(module, sampler=SamplerConfig(n_evaluations=20))
    torch.testing.assert_close(found, latents.mean(0).expand(4, -1), rtol=1e-2, atol=1e-2)


def test_reference_matters_unless_there_is_none():
    one, two = torch.zeros(4, N_LATENT), torch.ones(4, N_LATENT)
    for kind, matters in (("cell", True), ("population", True), ("none", False)):
        module = stirred(reference=kind)
        drawn = [draw(module, reference=r) for r in (one, two)]
        if kind == "cell":
            drawn = [d - r for d, r in zip(drawn, (one, two), strict=True)]
        assert torch.allclose(*drawn, atol=1e-4) != matters


def test_conditions_need_not_be_in_the_table():
    module = stirred()
    new = ConditionTensors(
        torch.tensor([[1, 0]]),
        torch.tensor([[7.0, 3.0]]),
        torch.tensor([[True, True]]),
        torch.tensor([24.0]),
    )
    code = torch.zeros(5, dtype=torch.long)
    found = module.sample_latent(
        ConditionBatch(new, code, torch.zeros(5, N_LATENT), code),
        sampler=SamplerConfig(n_evaluations=3),
        generator=None,
    )
    assert torch.isfinite(found).all()


def test_tables_are_not_saved_with_the_weights():
    state = make().state_dict()
    assert not any(name.startswith("table_") for name in state)
    assert {"target_scale", "latent_shift", "n_updates"} <= state.keys()
    assert torch.equal(make().table.dose, TABLE.dose)


@pytest.mark.parametrize(
    "wrong",
    [
        {"combine": "product"},
        {"reference": "mean"},
        {"schedule": "sine"},
        {"parameterisation": "z"},
    ],
)
def test_choices_are_checked(wrong):
    with pytest.raises(ValueError, match="choose one of"):
        DiffusionConfig(**wrong)
