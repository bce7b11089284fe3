"""The part of an effect that adds up."""

from __future__ import annotations

import pytest
import torch

from scvi_perturb.nn import AdditiveEffect
from scvi_perturb.nn.perturbation import hill_factor


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
