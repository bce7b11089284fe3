"""Solvers: exact cases, orders of convergence, both ways, an independent implementation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scvi_perturb.generative import SOLVERS, integrate, integrate_adaptive, n_steps_of

ORDERS = {"euler": 1, "heun": 2, "rk4": 4}


def spiral(t, x):
    """Turn and shrink at a rate that depends on time."""
    turn = torch.tensor([[-0.5, -2.0], [2.0, -0.5]], dtype=x.dtype)
    return (1 + math.sin(3 * t)) * x @ turn.T


def exact(x, t=1.0):
    """Return the solution of `spiral` from `x` at time 0."""
    clock = t + (1 - math.cos(3 * t)) / 3
    angle = 2 * clock
    turn = torch.tensor(
        [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]], dtype=x.dtype
    )
    return math.exp(-0.5 * clock) * x @ turn.T


@pytest.fixture
def start():
    return torch.tensor([[1.0, 0.0], [0.3, -2.0]], dtype=torch.float64)


@pytest.mark.parametrize("solver", SOLVERS)
def test_error_falls_with_the_order_of_the_solver(start, solver):
    errors = []
    for n_steps in (40, 80):
        (end,) = integrate(spiral, start, n_steps=n_steps, solver=solver)
        errors.append(float((end - exact(start)).abs().max()))
    assert math.log2(errors[0] / errors[1]) == pytest.approx(ORDERS[solver], abs=0.2)


def test_the_way_back_is_the_way_forth(start):
    (end,) = integrate(spiral, start, n_steps=400, solver="rk4")
    (back,) = integrate(spiral, end, times=(1.0, 0.0), n_steps=400, solver="rk4")
    assert float((back - start).abs().max()) < 1e-8


def test_states_on_the_way(start):
    times = (0.0, 0.25, 0.7, 1.0)
    path = list(integrate(spiral, start, times=times, n_steps=200, solver="rk4"))
    assert len(path) == 3
    for t, state in zip(times[1:], path, strict=True):
        torch.testing.assert_close(state, exact(start, t), atol=1e-7, rtol=0)


def test_adaptive_steps_agree(start):
    pytest.importorskip("torchdiffeq")
    times = (0.0, 0.4, 1.0)
    found = list(integrate_adaptive(spiral, start, times=times, tolerance=1e-9))
    assert len(found) == 2
    torch.testing.assert_close(found[-1], exact(start), atol=1e-6, rtol=0)
    (back,) = integrate_adaptive(spiral, found[-1], times=(1.0, 0.0), tolerance=1e-9)
    torch.testing.assert_close(back, start, atol=1e-6, rtol=0)


@pytest.mark.parametrize("solver", ["euler", "rk4"])
def test_fixed_steps_agree_with_the_reference_implementation(start, solver):
    torchdiffeq = pytest.importorskip("torchdiffeq")
    grid = torch.linspace(0, 1, 21, dtype=torch.float64)
    theirs = torchdiffeq.odeint(lambda t, x: spiral(float(t), x), start, grid, method=solver)[-1]
    (ours,) = integrate(spiral, start, n_steps=20, solver=solver)
    # Theirs is the 3/8 rule of order 4: alike up to the error of the method.
    torch.testing.assert_close(ours, theirs, atol=1e-12 if solver == "euler" else 2e-5, rtol=0)


@pytest.mark.parametrize(("solver", "steps"), [("euler", 20), ("heun", 10), ("rk4", 5)])
def test_evaluations_pay_for_steps(start, solver, steps):
    calls = []

    def counted(t, x):
        calls.append(t)
        return torch.zeros_like(x)

    assert n_steps_of(20, solver) == steps
    list(integrate(counted, start, n_steps=steps, solver=solver))
    assert len(calls) == 20
    assert n_steps_of(1, solver) == 1


def test_what_cannot_be_solved_is_refused(start):
    with pytest.raises(ValueError, match="solver='midpoint'"):
        list(integrate(spiral, start, solver="midpoint"))
    with pytest.raises(ValueError, match="n_steps=0"):
        list(integrate(spiral, start, n_steps=0))
    with pytest.raises(ValueError, match="1 times"):
        list(integrate(spiral, start, times=(0.0,)))


def test_empty_batches_pass():
    (end,) = integrate(spiral, torch.zeros(0, 2, dtype=torch.float64))
    assert np.array_equal(end.shape, (0, 2))
