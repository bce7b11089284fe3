"""Embedding and additive effect of perturbations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from scvi_perturb.nn import AdditiveEffect, PerturbationEncoder
from scvi_perturb.nn.perturbation import hill_factor

# Perturbation --------------------------------------------------------------------------


#: Components with an identity, and one more that is known by features alone.
N_IDENTITIES, N_COMPONENTS, N_OUT = 4, 5, 8
#: The last component with an identity has no features.
PRESENT = torch.tensor([True, True, True, False, True])


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def values(n_columns=3):
    return torch.randn(N_COMPONENTS, n_columns, generator=torch.Generator().manual_seed(5))


def features(**changes):
    return {"embedding": (values(), PRESENT), **changes}


def encoder(given=None, *, combine="sum", **options):
    made = PerturbationEncoder(
        N_IDENTITIES,
        features() if given is None else given,
        n_out=N_OUT,
        combine=combine,
        **options,
    )
    for parameter in (made.log_ec50, made.log_slope, made.component_ec50.weight):
        nn.init.normal_(parameter, std=0.5)
    return made.eval()


def conditions(*rows, time=math.nan, m=3):
    """Return tensors of conditions: rows of `(component, dose)`."""
    component, dose = torch.zeros(len(rows), m, dtype=torch.long), torch.ones(len(rows), m)
    mask = torch.zeros(len(rows), m, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, (one, amount) in enumerate(row):
            component[i, j], dose[i, j], mask[i, j] = one, amount, True
    return component, dose, mask, torch.full((len(rows),), time)


COMBINE = pytest.mark.parametrize("combine", ["sum", "attention"])


@COMBINE
def test_order_of_components_is_irrelevant(combine):
    made = encoder(combine=combine)
    one = made(*conditions([(0, 1.0), (2, 3.0), (1, 0.5)], [(3, 2.0), (4, 1.0)]))
    two = made(*conditions([(1, 0.5), (0, 1.0), (2, 3.0)], [(4, 1.0), (3, 2.0)]))
    torch.testing.assert_close(one, two)


@COMBINE
def test_padding_is_irrelevant(combine):
    made = encoder(combine=combine)
    rows = [(0, 1.0), (2, 3.0)], [(1, 2.0)]
    component, dose, mask, time = conditions(*rows, m=4)
    component[~mask], dose[~mask] = 3, 17.0
    torch.testing.assert_close(made(component, dose, mask, time), made(*conditions(*rows, m=2)))


@COMBINE
def test_control_without_a_time_is_the_zero_vector(combine):
    made = encoder(combine=combine)
    found = made(*conditions([], [(0, 1.0)]))
    assert torch.equal(found[0], torch.zeros(N_OUT))
    assert found[1].abs().max() > 0.1


def test_combination_is_the_sum_of_its_parts():
    made = encoder()
    both, one, two = made(*conditions([(0, 1.0), (2, 3.0)], [(0, 1.0)], [(2, 3.0)]))
    torch.testing.assert_close(both, one + two)


def test_attention_adds_an_interaction_to_combinations_only():
    made = encoder(combine="attention")
    rows = conditions([(0, 1.0), (2, 3.0)], [(0, 1.0)], [(2, 3.0)])
    both, one, two = made(*rows)
    assert (both - one - two).abs().max() > 1e-3
    made.attention = None
    torch.testing.assert_close(made(*rows)[1:], torch.stack([one, two]))


def test_time_moves_every_condition_by_the_same_vector():
    made = encoder()
    rows = ([], [(0, 1.0)], [(1, 1.0), (2, 1.0)])
    without, early, late = (made(*conditions(*rows, time=t)) for t in (math.nan, 6.0, 24.0))
    moved = early - without
    torch.testing.assert_close(moved, moved[:1].expand_as(moved))
    assert (late - early).abs().max() > 1e-3
    assert torch.isfinite(without).all()


def test_dose_factor_is_one_at_the_reference_dose():
    made = encoder()
    reference = torch.tensor([0.1, 1.0, 30.0, 1e4, 5.0])
    made.prepare(torch.tensor([True, True, False, True, False]), reference)
    every = torch.arange(N_COMPONENTS)[None]
    found = made.dose_factor(every, reference[None])
    torch.testing.assert_close(found, torch.ones(1, N_COMPONENTS))


def test_dose_factor_rises_and_saturates():
    made = encoder()
    made.prepare(torch.ones(N_COMPONENTS, dtype=torch.bool), torch.full((N_COMPONENTS,), 2.0))
    dose = torch.logspace(-5, 9, 100)[:, None].expand(-1, N_COMPONENTS)
    found = made.dose_factor(torch.arange(N_COMPONENTS).expand(100, -1), dose)
    assert (found.diff(dim=0) >= 0).all()
    assert (found[40:60].diff(dim=0) > 0).all()
    assert found[0].max() < 0.05
    # The most it can reach is the inverse of the response at the reference dose.
    slope, ec50 = made.log_slope.exp(), made.log_ec50.repeat(N_COMPONENTS)
    ec50[:N_IDENTITIES] += made.component_ec50.weight[:, 0]
    torch.testing.assert_close(found[-1], 1 / torch.sigmoid(-slope * ec50), rtol=1e-3, atol=0)


def test_dose_scales_the_vector():
    made = encoder()
    low, high = made(*conditions([(0, 1.0)], [(0, 100.0)]))
    factor = made.dose_factor(torch.tensor([[0]]), torch.tensor([[100.0]]))
    assert factor > 1.05
    torch.testing.assert_close(high, factor[0] * low)


def test_component_never_trained_on_has_no_identity_and_is_carried_by_features():
    made = encoder()
    seen = torch.tensor([True, True, False, True, False])
    made.prepare(seen, torch.ones(N_COMPONENTS))
    every = torch.arange(N_COMPONENTS)
    before, factors = made.component_vectors(every), made.dose_factor(every[None], every[None] + 2)
    for weights in (made.identity.weight, made.component_ec50.weight):
        nn.init.normal_(weights, mean=3)
    after = made.component_vectors(every)
    changed = (after - before).abs().amax(1) > 1e-6
    assert changed.tolist() == [True, True, False, True, False]
    moved = made.dose_factor(every[None], every[None] + 2)[0] != factors[0]
    assert moved.tolist() == [True, True, False, True, False]
    # Only features are left: gate times projection of the standardised row.
    shift, scale = made.shift_embedding, made.scale_embedding
    gate = nn.functional.softplus(made.gates[1])
    alone = (
        gate * ((values() - shift) / scale).clamp(-5, 5) @ made.projections["embedding"].weight.T
    )
    torch.testing.assert_close(after[[2, 4]], alone[[2, 4]])


def test_component_without_identity_and_features_is_the_zero_vector():
    made = encoder()
    made.prepare(torch.tensor([True, True, True, False, False]), torch.ones(N_COMPONENTS))
    assert torch.equal(made.component_vectors(torch.tensor([3])), torch.zeros(1, N_OUT))


def test_without_features_there_are_identities_alone():
    made = encoder({})
    gate = nn.functional.softplus(made.gates[0])
    torch.testing.assert_close(gate, torch.tensor(1.0))
    found = made.train().component_vectors(torch.arange(N_IDENTITIES))
    torch.testing.assert_close(found, made.identity.weight)


def test_identity_is_dropped_where_features_cover_and_nowhere_else():
    made = encoder(identity_dropout=1.0).train()
    with_identity = torch.arange(N_IDENTITIES)
    found = made.component_vectors(with_identity)
    made.identity_dropout = 0.0
    kept = made.component_vectors(with_identity)
    dropped = ~(found == kept).all(1)
    assert dropped.tolist() == PRESENT[:N_IDENTITIES].tolist()
    gate = nn.functional.softplus(made.gates[0])
    torch.testing.assert_close((kept - found)[:3], gate * made.identity.weight[:3])
    made.eval()
    made.identity_dropout = 1.0
    assert torch.equal(made.component_vectors(with_identity), kept), "not while predicting"


def test_identity_is_dropped_at_its_rate():
    made = encoder(identity_dropout=0.3).train()
    ids = torch.zeros(4000, dtype=torch.long)
    found = made.component_vectors(ids)
    longest = found.unique(dim=0)
    assert len(longest) == 2, "with and without"
    made.identity_dropout = 1.0
    share = torch.isclose(found, made.component_vectors(ids[:1]), atol=1e-6).all(1).float().mean()
    assert abs(share - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 4000)


def test_single_modality_is_never_dropped():
    made = encoder(identity_dropout=1.0, modality_dropout=1.0).train()
    assert made.component_vectors(torch.tensor([0])).abs().max() > 0.01


def test_one_of_several_modalities_is_dropped_while_training():
    given = features(other=(values(2), torch.ones(N_COMPONENTS, dtype=torch.bool)))
    made = encoder(given, modality_dropout=0.5, identity_dropout=0.0).train()
    found = made.component_vectors(torch.zeros(500, dtype=torch.long))
    assert len(found.unique(dim=0)) == 4
    made.eval()
    assert len(made.component_vectors(torch.zeros(500, dtype=torch.long)).unique(dim=0)) == 1


def test_features_are_standardised_by_the_components_trained_on():
    seen = torch.tensor([True, True, True, True, False])
    table = values()
    table[3] = torch.nan_to_num(table[3]) * 1e3  # masked: not to be looked at
    made = encoder({"embedding": (table, PRESENT)})
    made.prepare(seen, torch.ones(N_COMPONENTS))
    used = table[:3]
    torch.testing.assert_close(made.shift_embedding, used.mean(0))
    torch.testing.assert_close(made.scale_embedding, used.std(0) * math.sqrt(3))
    other = table.clone()
    other[[3, 4]] += 100.0
    again = encoder({"embedding": (other, PRESENT)})
    again.prepare(seen, torch.ones(N_COMPONENTS))
    torch.testing.assert_close(again.shift_embedding, made.shift_embedding)
    torch.testing.assert_close(again.scale_embedding, made.scale_embedding)


def test_standardised_features_have_a_norm_of_about_one_whatever_their_number():
    for n_columns in (3, 300):
        n = 40
        table = 7 + 3 * torch.randn(n, n_columns)
        given = {"embedding": (table, torch.ones(n, dtype=torch.bool))}
        made = PerturbationEncoder(n, given, n_out=N_OUT)
        made.prepare(torch.ones(n, dtype=torch.bool), torch.ones(n))
        scaled = (table - made.shift_embedding) / made.scale_embedding
        assert scaled.square().sum(1).mean().sqrt() == pytest.approx(1, abs=0.03)


def test_constant_feature_vanishes_and_one_component_is_left_as_it_is():
    table = values()
    table[:, 1] = 4.0
    made = encoder({"embedding": (table, PRESENT)})
    made.prepare(torch.tensor([True, True, True, True, False]), torch.ones(N_COMPONENTS))
    scaled = (table - made.shift_embedding) / made.scale_embedding
    assert torch.equal(scaled[:, 1], torch.zeros(N_COMPONENTS))
    torch.testing.assert_close(made.scale_embedding[0], table[:3, 0].std() * math.sqrt(2))
    made.prepare(torch.tensor([True, False, False, False, False]), torch.ones(N_COMPONENTS))
    assert torch.equal(made.shift_embedding, torch.zeros(3))
    assert torch.equal(made.scale_embedding, torch.ones(3))


def test_features_are_not_saved_but_their_scale_is():
    state = encoder().state_dict()
    assert {"shift_embedding", "scale_embedding", "seen", "reference_dose"} <= state.keys()
    assert not any(name.startswith(("features_", "present_")) for name in state)


# Additive ------------------------------------------------------------------------------


@pytest.fixture
def effect():
    made = AdditiveEffect(3, 2)
    made.vectors.copy_(torch.tensor([[1.0, 0], [0, 2], [-3, 1]]))
    made.reference_dose.copy_(torch.tensor([1.0, 10.0, 0.1]))
    made.log_ec50.fill_(0.7)
    made.log_slope.fill_(-0.3)
    return made


def apply(effect, *rows):
    m = max(map(len, rows))
    component, dose = torch.zeros(len(rows), m, dtype=torch.long), torch.ones(len(rows), m)
    mask = torch.zeros(len(rows), m, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, (one, amount) in enumerate(row):
            component[i, j], dose[i, j], mask[i, j] = one, amount, True
    return effect(component, dose, mask)


def test_components_add_in_any_order_and_the_control_is_zero(effect):
    both, other, one, two, none = apply(
        effect, [(0, 3.0), (2, 0.5)], [(2, 0.5), (0, 3.0)], [(0, 3.0)], [(2, 0.5)], []
    )
    torch.testing.assert_close(both, one + two)
    torch.testing.assert_close(both, other)
    assert torch.equal(none, torch.zeros(2))


def test_vector_is_the_effect_at_the_reference_dose(effect):
    found = apply(effect, [(0, 1.0)], [(1, 10.0)], [(2, 0.1)])
    torch.testing.assert_close(found, effect.vectors)


def test_dose_factor_is_a_hill_curve():
    dose = torch.logspace(-3, 3, 50)
    ec50, slope = torch.tensor(0.7), torch.tensor(-0.3)
    k, h = ec50.exp(), slope.exp()
    expected = dose**h / (dose**h + k**h) * (1 + k**h)
    found = hill_factor(dose.log(), ec50, slope)
    torch.testing.assert_close(found, expected)
    assert (found.diff() > 0).all()
    assert found[-1] < 1 + k**h
    assert hill_factor(torch.zeros(()), ec50, slope) == 1


def test_nothing_is_learnt_by_gradient_and_all_is_saved(effect):
    assert list(effect.parameters()) == []
    again = AdditiveEffect(3, 2)
    again.load_state_dict(effect.state_dict())
    asked = [(0, 3.0), (1, 2.0)]
    torch.testing.assert_close(apply(again, asked), apply(effect, asked))


def test_screen_without_components_works():
    assert AdditiveEffect(0, 2).vectors.shape == (1, 2)
