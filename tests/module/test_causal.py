"""The module of latent groups: bounds, groups, edited genes, and each term of its loss."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from scvi.distributions import NegativeBinomial
from torch.distributions import Normal
from torch.nn import functional

from scvi_perturb.module import AutoencoderConfig, CausalConfig, CausalModule, ConditionTensors
from scvi_perturb.module.causal import (
    CausalDesign,
    GroupedAutoencoder,
    LatentGroups,
    _adversary_loss,
    state_divergence,
)
from scvi_perturb.nn import MetadataSpec
from scvi_perturb.nn.metadata import gaussian_kl, gaussian_log_prob
from tests.module._small import N_BATCH, N_CELLS, N_GENES, make_batch, stir

SIZES = {"n_identity": 3, "n_state": 2, "n_technical": 2}
N_LATENT = 8
#: Where the depth is among the latents.
DEPTH = 5
CONTROL, A, B, BOTH = range(4)
#: The gene that component A edits; B edits none.
EDITED = 2


def make_design(**changes):
    """Return a screen of control, A, B and A+B, two contexts, three batches, and ages."""
    conditions = ConditionTensors(
        torch.tensor([[0, 0], [0, 0], [1, 0], [0, 1]]),
        torch.tensor([[1.0, 1.0], [2.0, 1.0], [1.0, 1.0], [2.0, 1.0]]),
        torch.tensor([[False, False], [True, False], [True, False], [True, True]]),
        torch.tensor([math.nan, 6.0, 12.0, 12.0]),
    )
    design = CausalDesign(
        n_genes=N_GENES,
        conditions=conditions,
        identity=(MetadataSpec("cell_type", 2), MetadataSpec("age", 0)),
        technical=(MetadataSpec("batch", N_BATCH), MetadataSpec("platform", 2)),
        context_levels=torch.tensor([[1], [0]]),
        batch_levels=torch.arange(N_BATCH)[:, None],
        n_components=2,
        pairs=((0, 1),),
        label=torch.arange(4),
        n_labels=4,
        target=torch.tensor([EDITED, -1]),
        kind=torch.tensor([0, 1]),
    )
    return replace(design, **changes)


def make(*, design=None, likelihood="nb", decoder="mlp", std=0.3, **config):
    """Return a module with weights of its own that was told of twelve hours and seen components."""
    size = AutoencoderConfig(
        n_latent=N_LATENT, n_hidden=7, n_layers=1, dropout=0.0, likelihood=likelihood,
        decoder=decoder,
    )  # fmt: skip
    config = CausalConfig(**{**SIZES, "metadata_dropout": 0.0, **config})
    module = stir(GroupedAutoencoder(design or make_design(), size, config), std)
    module.operators.reference_time.fill_(12.0)
    module.seen.fill_(value=True)
    module.n_cells.fill_(100.0)
    return module


def make_cells(n=N_CELLS, **values):
    """Return a batch under all conditions, with ages and platforms of which some are missing."""
    batch = make_batch(n)
    batch["condition"] = torch.arange(n) % 4
    batch["context"] = torch.arange(n) % 2
    batch["metadata_age"] = torch.where(torch.arange(n) % 3 == 1, torch.nan, 1.5)
    batch["metadata_platform"] = torch.arange(n) % 3 - 1
    return batch | values


def log_mixture(points, shift, odds):
    """Return the log-density of `r N(shift, 1) + (1 - r) N(0, 1)`."""
    share = torch.sigmoid(odds)
    parts = [(points - s).square().sum(-1).mul(-0.5).exp() for s in (shift, torch.zeros(2))]
    return (share * parts[0] + (1 - share) * parts[1]).log() - math.log(2 * math.pi)


# The prior of the state ---------------------------------------------------------------------


@pytest.mark.parametrize("odds", [-2.0, 0.0, 2.0])
@pytest.mark.parametrize("mean", [(0.0, 0.0), (0.7, -0.4), (1.8, -1.2)])
def test_state_divergence_is_an_upper_bound(mean, odds):
    n = 20_000
    mean, log_variance = torch.tensor(mean), torch.tensor([-1.2, -0.3])
    shift, odds = torch.tensor([1.8, -1.2]), torch.tensor(odds)
    points = mean + (0.5 * log_variance).exp() * torch.randn(n, 2)
    ratio = gaussian_log_prob(points, mean, log_variance) - log_mixture(points, shift, odds)
    bound, _ = state_divergence((mean[None], log_variance[None]), shift[None], odds[None])
    assert float(bound) >= float(ratio.mean()) - 4 * float(ratio.std()) / n**0.5
    # And not a loose one: never more than what the certain choice of one part would cost.
    one = gaussian_kl((mean[None], log_variance[None]), (shift[None], torch.zeros(1, 2)))
    assert float(bound) <= float(one - functional.logsigmoid(odds)) + 1e-6


def test_state_divergence_where_it_is_known():
    posterior = torch.randn(5, 2), torch.randn(5, 2)
    shift, unit = torch.randn(5, 2), torch.zeros(5, 2)
    every, responded = state_divergence(posterior, shift, torch.full((5,), torch.inf))
    torch.testing.assert_close(every, gaussian_kl(posterior, (shift, unit)))
    assert (responded == 1).all()
    odds = torch.linspace(-3, 3, 5)
    none, responded = state_divergence(posterior, unit, odds)
    torch.testing.assert_close(none, gaussian_kl(posterior, (unit, unit)))
    torch.testing.assert_close(responded, odds.sigmoid())


def test_who_responded_is_told_by_where_the_state_is():
    shift = torch.tensor([[6.0, 0.0]] * 3)
    mean = torch.tensor([[6.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    _, responded = state_divergence((mean, torch.full((3, 2), -3.0)), shift, torch.zeros(3))
    torch.testing.assert_close(responded, torch.tensor([1.0, 0.5, 0.0]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("odds", [torch.inf, 0.5])
def test_state_divergence_has_finite_gradients(odds):
    mean = torch.randn(3, 2, requires_grad=True)
    odds = torch.full((3,), odds, requires_grad=True)
    divergence, _ = state_divergence((mean, torch.zeros(3, 2)), torch.ones(3, 2), odds)
    divergence.sum().backward()
    assert torch.isfinite(mean.grad).all()
    assert torch.isfinite(odds.grad).all()


# Encoding and decoding ----------------------------------------------------------------------


def test_depth_is_the_standardised_log_library_and_sure():
    module, batch = make(), make_cells()
    module.depth_moments.copy_(torch.tensor([2.0, 0.5]))
    mean, log_variance = module.encode(batch)
    assert mean.shape == log_variance.shape == (N_CELLS, N_LATENT)
    expected = (batch["library"].log() - 2.0) / 0.5
    assert torch.equal(mean[:, DEPTH], expected)
    assert torch.equal(module.groups(mean).technical[:, 0], expected)
    assert (log_variance[:, DEPTH] < -20).all()
    assert (log_variance[:, [0, DEPTH - 1, DEPTH + 1]] > -20).all()
    assert [g.shape[1] for g in module.groups(mean)] == [3, 2, 3]
    drawn = module.inference(batch)["z"]
    torch.testing.assert_close(drawn[:, DEPTH], expected, rtol=0, atol=1e-5)


def test_encoder_sees_expression_less_the_profile():
    module, batch = make(), make_cells()
    module.profile.copy_(torch.rand(N_GENES))
    values = torch.log1p(1e4 * batch["X"] / batch["library"][:, None]) - module.profile
    mean, _ = module.encoder(values, module.depth(batch)[:, None])
    torch.testing.assert_close(module.encode(batch)[0][:, :DEPTH], mean[:, :DEPTH])


@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_decoder_reads_neither_batch_nor_depth(decoder):
    module, latent = make(decoder=decoder), torch.randn(N_BATCH, N_LATENT)
    library = torch.full((N_BATCH,), 50.0)
    made = module.decode(latent, library, torch.arange(N_BATCH))
    other = latent.clone()
    other[:, DEPTH] += 3.0
    again = module.decode(other, library, torch.zeros(N_BATCH, dtype=torch.long))
    assert torch.equal(made.mean, again.mean)
    torch.testing.assert_close(made.mean.sum(1), library)
    other[:, DEPTH + 1] += 1.0
    assert not torch.equal(module.decode(other, library).mean, made.mean)


def test_linear_decoder_is_linear_and_the_other_starts_so():
    size = AutoencoderConfig(n_latent=N_LATENT, n_hidden=7, n_layers=1, likelihood="normal")
    module = GroupedAutoencoder(make_design(), size, CausalConfig(**SIZES)).eval()
    latent = torch.randn(4, N_LATENT)
    coded = latent[:, [i for i in range(N_LATENT) if i != DEPTH]]
    expected = coded @ module.linear_decoder.weight.T + module.decoder.logits.bias
    torch.testing.assert_close(module.decode(latent, torch.ones(4)).mean, expected)
    module = make(decoder="linear", likelihood="normal")
    expected = coded @ module.linear_decoder.weight.T + module.decoder.logits.bias
    torch.testing.assert_close(module.decode(latent, torch.ones(4)).mean, expected)


def test_only_the_edited_gene_of_cells_that_were_edited_is_corrected():
    module, latent = make(likelihood="normal"), torch.randn(4, N_LATENT)
    plain = module.decode(latent, torch.ones(4)).mean
    corrected = module.decode(latent, torch.ones(4), conditions=module.table).mean
    change = torch.zeros(4, N_GENES)
    change[[A, BOTH], EDITED] = (module.on_target_kind[0] + module.on_target[0]).detach()
    torch.testing.assert_close(corrected - plain, change)
    assert change.abs().max() > 1e-3


def test_correction_of_a_sum_has_its_weights():
    module, latent = make(likelihood="normal"), torch.randn(2, N_LATENT)
    rows = module.table.rows(torch.tensor([BOTH, BOTH]))
    plain = module.decode(latent, torch.ones(2)).mean
    weight = torch.tensor([[0.0, 1.0], [-1.0, 1.0]])
    change = module.decode(latent, torch.ones(2), conditions=rows, weight=weight).mean - plain
    once = module.on_target_kind[0] + module.on_target[0]
    torch.testing.assert_close(change[:, EDITED], torch.stack([0 * once, -once]))


def test_a_gene_that_two_components_edit_is_corrected_twice():
    module = make(likelihood="normal", design=make_design(target=torch.tensor([1, 1])))
    latent = torch.randn(1, N_LATENT)
    rows = module.table.rows(torch.tensor([BOTH]))
    change = module.decode(latent, torch.ones(1), conditions=rows).mean
    change = change - module.decode(latent, torch.ones(1)).mean
    both = (module.on_target_kind + module.on_target).sum()
    torch.testing.assert_close(change[0, 1], both)
    assert change[0, [0, 2, 3, 4]].abs().max() < 1e-6


def test_fields_are_levels_of_codes_and_columns():
    module, batch = make(), make_cells(4)
    batch["context"] = torch.tensor([0, 1, 2, 0])
    batch["batch"] = torch.tensor([2, 0, 5, 1])
    found = module.fields(batch)
    assert set(found) == {"cell_type", "age", "batch", "platform"}
    assert found["cell_type"].tolist() == [1, 0, -1, 1]
    assert found["batch"].tolist() == [2, 0, -1, 1]
    assert found["age"] is batch["metadata_age"]


def test_odds_add_over_components_unless_all_respond():
    module = make()
    own = module.responds_own
    expected = 10 * (module.responds + torch.stack([0 * own[0], own[0], own[1], own.sum()]))
    torch.testing.assert_close(module.log_odds(module.table), expected)
    assert torch.isinf(make(responders=False).log_odds(module.table)).all()


def test_real_values_are_used_as_they_are():
    module = make(design=make_design(is_continuous=True), likelihood="normal")
    batch = make_cells()
    batch["X"] = torch.randn(N_CELLS, N_GENES)
    batch["library"] = batch["X"].sum(1)
    assert module.transform(batch) is batch["X"]
    assert (module.encode(batch)[0][:, DEPTH] == 0).all()
    _, generative, output = module(batch)
    mean, scale, _ = generative["px"]
    expected = -Normal(mean, scale).log_prob(batch["X"]).sum(1)
    found = output.reconstruction_loss["reconstruction_loss"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
    profile = torch.randn(N_GENES)
    module.initialise(profile)
    assert torch.equal(module.decoder.logits.bias, profile)


# The loss -----------------------------------------------------------------------------------


def test_loss_without_further_terms_is_the_evidence_bound():
    module, batch = (
        make(classification=0.0, independence="none", control_invariance=0.0),
        make_cells(),
    )
    inference, generative, output = module(batch, loss_kwargs={"kl_weight": 0.3})
    assert set(output.extra_metrics) == {"shrinkage"}
    counts = NegativeBinomial(mu=generative["px"].mean, theta=generative["px"].dispersion)
    reconstruction = -counts.log_prob(batch["X"]).sum(1)
    mean, log_variance = (module.groups(inference[k]) for k in ("qz_m", "qz_logv"))
    fields = module.fields(batch)
    expected = torch.zeros(N_CELLS)
    for name, cut in (("identity", 0), ("technical", 1)):
        prior = getattr(module, f"{name}_prior")
        own = getattr(mean, name)[:, cut:], getattr(log_variance, name)[:, cut:]
        expected = expected + gaussian_kl(own, prior.moments(fields, N_CELLS))
    rows = module.table.rows(batch["condition"])
    shift = module.shift(rows, mean.identity)
    state, _ = state_divergence((mean.state, log_variance.state), shift, module.log_odds(rows))
    bound = (reconstruction + 0.3 * (expected + state)).mean()
    total = bound + output.extra_metrics["shrinkage"]
    torch.testing.assert_close(output.loss, total, rtol=1e-5, atol=1e-4)


def test_shrinkage_is_a_prior_that_many_cells_outweigh():
    module = make(operator_shrinkage=2.0, context_shrinkage=3.0, additivity=5.0, sparsity=7.0)
    operators = module.operators
    curves = sum(
        getattr(operators, name).square().sum() for name in ("log_ec50", "log_slope", "log_tau")
    )
    expected = (
        2 * (operators.vectors.square().sum() + 0.1 * curves)
        + 5 * operators.pairs.square().sum()
        + 7 * operators.vectors.abs().sum()
        + (10 * module.responds_own).square().sum()
        + module.on_target.square().sum()
    )
    found = module(make_cells())[-1].extra_metrics["shrinkage"]
    # Of what contexts differ in, the contexts are the sample.
    contexts = 3 * operators.bend.weight.square().sum() / len(module.context_levels)
    torch.testing.assert_close(found, expected / 100 + contexts)


@pytest.mark.parametrize(
    ("term", "off"),
    [
        ("classification", {"classification": 0.0}),
        ("independence", {"independence": "none"}),
        ("independence", {"independence_weight": 0.0}),
        ("control_invariance", {"control_invariance": 0.0}),
    ],
)
def test_terms_are_there_by_their_weight(term, off):
    batch = make_cells()
    with torch.random.fork_rng():
        on = make()(batch)[-1]
    assert set(on.extra_metrics) == {
        "shrinkage", "classification", "independence", "control_invariance"
    }  # fmt: skip
    assert set(make(**off)(batch)[-1].extra_metrics) == set(on.extra_metrics) - {term}


@pytest.mark.parametrize("term", ["classification", "independence", "control_invariance"])
def test_terms_scale_with_their_weight(term):
    batch, found = make_cells(12), []
    for weight in (1.0, 3.0):
        torch.manual_seed(1)
        config = {term if term != "independence" else "independence_weight": weight}
        found.append(make(**config)(batch)[-1].extra_metrics[term])
    torch.testing.assert_close(found[1], 3 * found[0])
    assert found[0] != 0


def test_each_group_has_so_many_nats_for_nothing():
    plain = {"classification": 0.0, "independence": "none", "control_invariance": 0.0}
    module, batch = make(**plain, free_bits=1e4), make_cells()
    output = module(batch, loss_kwargs={"kl_weight": 0.5})[-1]
    reconstruction = output.reconstruction_loss["reconstruction_loss"].mean()
    expected = reconstruction + 0.5 * 3e4 + output.extra_metrics["shrinkage"]
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    assert (
        module.identity_prior.centre.grad is None or (module.identity_prior.centre.grad == 0).all()
    )


def test_controls_are_in_the_basal_state_of_each_context():
    module, batch = make(control_invariance=1.0), make_cells(12)
    batch["condition"][:] = CONTROL
    batch["batch"][:] = 0
    inference, _, output = module(batch)
    state = module.groups(inference["qz_m"]).state
    # Per context and for the only batch, weighted by cells: the mean over pairs of cells.
    expected = 0.0
    for own in (state[batch["context"] == 0], state[batch["context"] == 1], state):
        n = len(own)
        products = own @ own.T
        pairs = (products.sum() - products.trace()) / (n * (n - 1))
        expected = expected + pairs * n / 12
    torch.testing.assert_close(output.extra_metrics["control_invariance"], expected)
    batch["condition"][:] = A
    assert module(batch)[-1].extra_metrics["control_invariance"] == 0


def test_adversary_learns_and_the_state_unlearns():
    module, batch = make(independence="adversary"), make_cells()
    assert set(module.adversaries) == {"context", "batch"}
    state = torch.randn(N_CELLS, 2, requires_grad=True)
    _adversary_loss(module, state, batch).backward()
    learned = {k: p.grad.clone() for k, p in module.adversaries.named_parameters()}
    module.zero_grad()
    plain = state.detach().clone().requires_grad_()
    loss = sum(functional.cross_entropy(h(plain), batch[k]) for k, h in module.adversaries.items())
    loss.backward()
    torch.testing.assert_close(state.grad, -plain.grad)
    for name, parameter in module.adversaries.named_parameters():
        torch.testing.assert_close(parameter.grad, learned[name])


@pytest.mark.parametrize("independence", ["hsic", "total_correlation", "adversary"])
@pytest.mark.parametrize("prior", ["gaussian", "mixture", "flow"])
def test_one_cell_trains(independence, prior):
    module = make(independence=independence, prior=prior).train()
    output = module(make_cells(1))[-1]
    output.loss.backward()
    assert torch.isfinite(output.loss)
    grads = [p.grad for p in module.parameters() if p.grad is not None]
    assert all(torch.isfinite(g).all() for g in grads)


@pytest.mark.parametrize(
    "config",
    [{}, {"independence": "total_correlation"}, {"independence": "adversary", "prior": "mixture"}],
    ids=["hsic", "total correlation", "adversary"],
)
@pytest.mark.parametrize("decoder", ["mlp", "linear"])
def test_every_parameter_learns(config, decoder):
    module = make(decoder=decoder, **config).train()
    module(make_cells(24))[-1].loss.backward()
    idle = {k for k, p in module.named_parameters() if p.grad is None or (p.grad == 0).all()}
    # Contexts and batches are never missing here.
    assert idle == {
        f"{group}_prior.metadata.{name}.0"
        for group in ("identity", "technical")
        for name in ("missing", "missing_variance")
    }


def test_wrapped_it_is_the_representation_of_a_model():
    module = make()
    assert CausalModule(module).representation is module
    assert isinstance(module.groups(torch.zeros(1, N_LATENT)), LatentGroups)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"prior": "vamp"}, "'flow', 'gaussian', 'mixture'"),
        ({"independence": "mmd"}, "'adversary', 'hsic', 'none', 'total_correlation'"),
        ({"n_state": 0}, "n_state=0"),
        ({"prior": "flow", "n_identity": 1}, "n_identity=1; .* at least 2"),
        ({"additivity": -1.0}, "additivity=-1.0"),
        ({"free_bits": math.nan}, "free_bits=nan"),
        ({"metadata_dropout": 1.0}, "metadata_dropout=1.0"),
    ],
)
def test_choices_are_checked(wrong, match):
    with pytest.raises(ValueError, match=match):
        CausalConfig(**wrong)
