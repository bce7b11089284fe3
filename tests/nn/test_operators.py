"""Operators on the state: control, order, doses, times, pairs, weights, identity."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.fft import dct

from scvi_perturb.nn import PerturbationOperators

N_STATE, N_IDENTITY = 3, 2


@pytest.fixture
def operators():
    """Four components, of which 0 and 2 were measured together."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = PerturbationOperators(4, N_STATE, N_IDENTITY, [(2, 0)])
        made.requires_grad_(requires_grad=False)
        for parameter in made.parameters():
            parameter.normal_(std=0.7)
    made.reference_dose.copy_(torch.tensor([1.0, 10.0, 0.1, 5.0]))
    made.reference_time.fill_(24.0)
    return made


def apply(operators, *rows, time=None, **given):
    """Return the shift of rows of `(component, dose)`, None for the reference dose."""
    m = max(1, *map(len, rows))
    component, mask = torch.zeros(len(rows), m, dtype=torch.long), torch.zeros(len(rows), m)
    dose = torch.ones(len(rows), m)
    for i, row in enumerate(rows):
        for j, (one, amount) in enumerate(row):
            component[i, j], mask[i, j] = one, 1
            dose[i, j] = operators.reference_dose[one] if amount is None else amount
    at = torch.full((len(rows),), torch.nan) if time is None else torch.tensor(time)
    return operators(component, dose, mask.bool(), at, **given)


def alone(*components):
    return [[(c, None)] for c in components]


def test_control_shifts_nothing(operators):
    identity = torch.ones(2, N_IDENTITY)
    shift = apply(operators, [], [(0, None), (2, None)], identity=identity)
    assert torch.equal(shift[0], torch.zeros(N_STATE))
    assert shift[1].abs().min() > 0


def test_order_does_not_matter(operators):
    one, other = apply(operators, [(0, 3.0), (1, 2.0), (2, None)], [(2, None), (0, 3.0), (1, 2.0)])
    torch.testing.assert_close(one, other)


def test_vector_is_the_shift_at_the_reference_dose_and_time(operators):
    for time in (None, [24.0] * 4):
        shift = apply(operators, *alone(0, 1, 2, 3), time=time)
        assert torch.equal(shift, operators.vectors)


def test_pairs_add_unless_they_were_measured(operators):
    known, new, *single = apply(
        operators, [(0, None), (2, None)], [(0, None), (1, None)], *alone(0, 1, 2)
    )
    torch.testing.assert_close(new, single[0] + single[1])
    torch.testing.assert_close(known, single[0] + single[2] + operators.pairs[0])
    triple = apply(operators, [(1, None), (2, None), (0, None)])[0]
    torch.testing.assert_close(triple, known + single[1])


def test_pair_term_scales_with_both_doses(operators):
    shift = apply(operators, [(0, 0.3), (2, 0.04)], [(0, 0.3)], [(2, 0.04)])
    doses = torch.tensor([[0.3, 0.04]])
    factor = operators.dose_factor(torch.tensor([[0, 2]]), doses).prod()
    torch.testing.assert_close(shift[0] - shift[1] - shift[2], factor * operators.pairs[0])


def test_doses_saturate_in_order(operators):
    relative = torch.logspace(-2, 2, 41)
    component = torch.arange(4)[:, None].expand(-1, 41)
    dose = relative * operators.reference_dose[:, None]
    factor = operators.dose_factor(component, dose)
    assert (factor.diff(dim=1) > 0).all()
    half, slope = operators.log_ec50.exp()[:, None], operators.log_slope.exp()[:, None]
    power, top = relative**slope, 1 + half**slope
    torch.testing.assert_close(factor, power / (power + half**slope) * top, rtol=1e-4, atol=1e-5)
    reference = operators.dose_factor(torch.arange(4)[:, None], operators.reference_dose[:, None])
    assert (reference == 1).all()
    assert torch.isfinite(operators.dose_factor(component[:, :1], torch.zeros(4, 1))).all()


def test_times_saturate_in_order_and_none_is_the_reference(operators):
    time = torch.tensor([1.0, 6.0, 12.0, 24.0, 48.0])
    component = torch.arange(4)[:, None].expand(-1, 5)
    factor = operators.time_factor(component, time.expand(4, -1))
    assert (factor.diff(dim=1) > 0).all()
    tau = operators.log_tau.exp()[:, None]
    expected = (1 - torch.exp(-time / 24 / tau)) / (1 - torch.exp(-1 / tau))
    torch.testing.assert_close(factor, expected, rtol=1e-4, atol=1e-5)
    assert (factor[:, 3] == 1).all()
    assert (operators.time_factor(component, torch.full((4, 5), torch.nan)) == 1).all()


def test_curves_of_which_nothing_is_known_learn_nothing(operators):
    operators.requires_grad_(requires_grad=True)
    apply(operators, *alone(0, 1)).square().sum().backward()
    for curve in (operators.log_ec50, operators.log_slope, operators.log_tau):
        assert curve.grad is None or (curve.grad == 0).all()
    assert (operators.paced.grad[:2] != 0).all()
    apply(operators, [(0, 3.0)], time=[6.0]).square().sum().backward()
    assert operators.log_ec50.grad[0] != 0
    assert operators.log_tau.grad[0] != 0


def test_weights_make_sums_and_differences(operators):
    both = [[(0, None), (1, None)]]
    minus = apply(operators, *both, weight=torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(minus[0], operators.vectors[0] - operators.vectors[1])
    # Also of a pair that was measured: what it does beyond the sum is no part of either.
    plus = apply(operators, [(0, None), (2, None)], weight=torch.ones(1, 2))
    torch.testing.assert_close(plus[0], operators.vectors[0] + operators.vectors[2])
    nothing = apply(operators, [(0, None), (2, None)], weight=torch.zeros(1, 2))
    assert torch.equal(nothing, torch.zeros(1, N_STATE))
    same = apply(operators, [(0, None), (0, None)], weight=torch.tensor([[1.0, -1.0]]))
    torch.testing.assert_close(same, torch.zeros(1, N_STATE))


def test_identity_bends_vectors_and_not_pairs(operators):
    identity = torch.tensor([[0.4, -1.0]] * 3)
    spread = torch.from_numpy(dct(np.eye(N_STATE), norm="ortho", axis=0)).float()
    bend = spread @ torch.diag(1 + torch.tanh(operators.bend.weight @ identity[0])) @ spread.T
    one, two, both = apply(operators, *alone(0, 2), [(0, None), (2, None)], identity=identity)
    torch.testing.assert_close(one, bend @ operators.vectors[0])
    torch.testing.assert_close(both - one - two, operators.pairs[0])
    average = apply(operators, *alone(0), identity=torch.zeros(1, N_IDENTITY))
    torch.testing.assert_close(average, apply(operators, *alone(0)))


def test_identity_turns_a_vector_along_one_direction(operators):
    with torch.no_grad():
        operators.paced.zero_()
        operators.paced[0, 0] = 0.1
    identity = torch.tensor([[0.4, -1.0]])
    shift = apply(operators, *alone(0), identity=identity)[0]
    assert (shift.abs() > 1e-3).all()
    # Never longer than twice the vector, nor against it.
    assert shift.norm() <= 2 * operators.vectors[0].norm()
    assert shift @ operators.vectors[0] >= 0


def test_a_new_operator_does_nothing_yet():
    made = PerturbationOperators(2, N_STATE, N_IDENTITY, [(0, 1)])
    shift = apply(made, [(0, 3.0), (1, None)], identity=torch.ones(1, N_IDENTITY))
    assert torch.equal(shift, torch.zeros(1, N_STATE))
    empty = PerturbationOperators(0, N_STATE, N_IDENTITY, [])
    assert torch.equal(apply(empty, []), torch.zeros(1, N_STATE))


def test_penalties_are_of_the_components_in_use(operators):
    used = torch.tensor([True, False, True, False])
    vectors, pairs, context, absolute = operators.penalties(used)
    own = operators.vectors[[0, 2]]
    curves = sum(
        getattr(operators, name)[[0, 2]].square().sum()
        for name in ("log_ec50", "log_slope", "log_tau")
    )
    torch.testing.assert_close(vectors, own.square().sum() + 0.1 * curves)
    torch.testing.assert_close(absolute, own.abs().sum())
    torch.testing.assert_close(pairs, operators.pairs.square().sum())
    torch.testing.assert_close(context, operators.bend.weight.square().sum())


def test_all_is_saved(operators):
    again = PerturbationOperators(4, N_STATE, N_IDENTITY, [(0, 2)])
    again.load_state_dict(operators.state_dict())
    asked = [[(0, 0.3), (2, 3.0)], [(3, 1.0)]]
    torch.testing.assert_close(
        apply(again, *asked, time=[3.0, 9.0]), apply(operators, *asked, time=[3.0, 9.0])
    )
