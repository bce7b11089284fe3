"""Ordinary differential equations: fixed steps, and adaptive ones as a check."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal, get_args

import torch
from torch import Tensor

from scvi_perturb._errors import check_choice

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Field", "Solver", "evaluations_a_step", "integrate", "integrate_adaptive", "n_steps_of"]

#: Maps `(t, x)` to the velocity of `x`; `t` is one time for all rows.
Field = Callable[[float, Tensor], Tensor]

Solver = Literal["euler", "heun", "rk4"]

_EVALUATIONS: Final[dict[str, int]] = {"euler": 1, "heun": 2, "rk4": 4}


def evaluations_a_step(solver: Solver) -> int:
    """Return how often the field is evaluated in a step."""
    check_choice("solver", solver, get_args(Solver))
    return _EVALUATIONS[solver]


def n_steps_of(n_evaluations: int, solver: Solver) -> int:
    """Return the number of whole steps that a budget of evaluations pays for, at least one."""
    return max(1, n_evaluations // evaluations_a_step(solver))


def integrate(
    field: Field,
    x: Tensor,
    *,
    times: Sequence[float] = (0.0, 1.0),
    n_steps: int = 10,
    solver: Solver = "heun",
) -> Iterator[Tensor]:
    """Follow a field and yield the state at each of the times after the first.

    Parameters
    ----------
    field
        `(t, x) -> dx/dt`.
    x
        State at the first time, `(n, n_dim)`.
    times
        At least two, rising or falling: backwards in time is as good as forwards.
    n_steps
        Steps over a span of one; each interval has its share, at least one.
    solver
        `"euler"` (order 1), `"heun"` (order 2) or `"rk4"` (order 4), with 1, 2 and 4 evaluations
        a step.

    Yields
    ------
    Tensor
        `(n, n_dim)`.

    Raises
    ------
    ValueError
        If the solver is not known, there are no steps, or fewer than two times.

    References
    ----------
    Hairer, Norsett and Wanner, Solving ordinary differential equations I, 1993.
    """
    check_choice("solver", solver, get_args(Solver))
    if n_steps < 1 or len(times) < 2:
        msg = f"n_steps={n_steps} and {len(times)} times; expected at least 1 step and 2 times."
        raise ValueError(msg)
    for start, end in pairwise(times):
        steps = max(1, round(n_steps * abs(end - start)))
        width = (end - start) / steps
        for i in range(steps):
            x = _STEPS[solver](field, start + i * width, x, width)
        yield x


def integrate_adaptive(
    field: Field,
    x: Tensor,
    *,
    times: Sequence[float] = (0.0, 1.0),
    tolerance: float = 1e-6,
) -> Iterator[Tensor]:
    """Follow a field with the adaptive Dormand-Prince method, as `integrate`.

    For checks: the number of evaluations is not bounded, and depends on all rows.

    Parameters
    ----------
    field, x, times
        As for :func:`integrate`.
    tolerance
        Absolute and relative error allowed.

    Raises
    ------
    ImportError
        Without torchdiffeq.

    References
    ----------
    Dormand and Prince 1980; Chen, torchdiffeq, 2018.
    """
    try:
        from torchdiffeq import odeint
    except ImportError as error:
        msg = (
            "Adaptive steps need torchdiffeq: pip install 'scvi-perturb[ode]'. Without it, take "
            "integrate(..., solver='rk4') with many steps."
        )
        raise ImportError(msg) from error

    def signed(t: Tensor, state: Tensor) -> Tensor:
        return field(float(t), state)

    points = torch.tensor(list(times), dtype=x.dtype, device=x.device)
    path = odeint(signed, x, points, rtol=tolerance, atol=tolerance, method="dopri5")
    yield from path[1:]


def _euler(field: Field, t: float, x: Tensor, width: float) -> Tensor:
    return x + width * field(t, x)


def _heun(field: Field, t: float, x: Tensor, width: float) -> Tensor:
    first = field(t, x)
    return x + (width / 2) * (first + field(t + width, x + width * first))


def _rk4(field: Field, t: float, x: Tensor, width: float) -> Tensor:
    half = width / 2
    k1 = field(t, x)
    k2 = field(t + half, x + half * k1)
    k3 = field(t + half, x + half * k2)
    k4 = field(t + width, x + width * k3)
    return x + (width / 6) * (k1 + 2 * (k2 + k3) + k4)


_STEPS: Final = {"euler": _euler, "heun": _heun, "rk4": _rk4}
