"""Flows: flow matching along straight lines, solvers, and the log-density.

Time runs from 0 (source) to 1 (data), the order in which cells are carried; the diffusion's time
runs the other way. The velocity at a point of a line is `E[data - source | x_t]`.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.func import jvp, vmap

from scvi_perturb._checks import check_choice, checked

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TimeLaw = Literal["uniform", "logit-normal"]


def training_times(
    n: int,
    law: TimeLaw = "uniform",
    *,
    device: torch.device | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw stratified training times, which reduce the noise of the loss.

    `n`: Number of times. `law`: `"uniform"`, or `"logit-normal"`, with more weight on the middle,
    where the velocity of a flow from noise is hardest to learn (Esser et al. 2024). `device`,
    `generator`: Of the result; source of randomness. Returns `(n,)`, in (0, 1).
    """
    check_choice("law", law, get_args(TimeLaw))
    order = torch.randperm(n, generator=generator, device=device)
    uniform = (order + torch.rand(n, generator=generator, device=device)) / n
    if law == "uniform":
        return uniform
    return torch.sigmoid(torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6)))


def flow_loss(velocity: Tensor, source: Tensor, data: Tensor) -> Tensor:
    """Return the squared error of the velocity at points of a line, averaged over dimensions.

    `velocity`: Predicted at `(1 - t) source + t data`, `(n, n_dim)`. `source`, `data`: Ends of the
    line, `(n, n_dim)`. Returns `(n,)`.

    Reference: Lipman et al., Flow matching for generative modeling, 2023; Tong et al., Improving
    and generalizing flow-based generative models with minibatch optimal transport, 2024.
    """
    return (velocity.float() - (data - source)).square().mean(1)


#: Maps `(t, x)` to the velocity of `x`; `t` is one time for all rows.
Field = Callable[[float, Tensor], Tensor]

Solver = Literal["euler", "heun", "rk4"]

#: How often each solver evaluates the field in a step.
EVALUATIONS_PER_STEP: Final[dict[Solver, int]] = {"euler": 1, "heun": 2, "rk4": 4}


@checked
def integrate(
    field: Field,
    x: Tensor,
    *,
    times: Sequence[float] = (0.0, 1.0),
    n_steps: int = 10,
    solver: Solver = "heun",
) -> Iterator[Tensor]:
    """Integrate a velocity field and yield the state at each time after the first.

    `field`: `(t, x) -> dx/dt`. `x`: State at the first time, `(n, n_dim)`. `times`: At least two,
    rising or falling: backwards in time is as good as forwards. `n_steps`: Steps over a span of
    one; each interval has its share, at least one. `solver`: `"euler"` (order 1), `"heun"` (order
    2) or `"rk4"` (order 4), with 1, 2 and 4 evaluations a step. Raises `ValueError`: If the solver
    is not known, there are no steps, or fewer than two times.

    Yields
    ------
    Tensor
        `(n, n_dim)`.

    Reference: Hairer, Norsett and Wanner, Solving ordinary differential equations I, 1993.
    """
    if n_steps < 1 or len(times) < 2:
        msg = f"n_steps={n_steps} and {len(times)} times; expected at least 1 step and 2 times."
        raise ValueError(msg)
    for start, end in pairwise(times):
        steps = max(1, round(n_steps * abs(end - start)))
        width = (end - start) / steps
        for i in range(steps):
            x = _STEPS[solver](field, start + i * width, x, width)
        yield x


@checked
def integrate_adaptive(
    field: Field, x: Tensor, *, times: Sequence[float] = (0.0, 1.0), tolerance: float = 1e-6
) -> Iterator[Tensor]:
    """Integrate a velocity field with the adaptive Dormand-Prince method, as `integrate`.

    For checks: the number of evaluations is not bounded, and depends on all rows.

    `field`, `x`, `times`: As for :func:`integrate`. `tolerance`: Absolute and relative error
    allowed. Raises `ImportError`: Without torchdiffeq.

    Reference: Dormand and Prince 1980; Chen, torchdiffeq, 2018.
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

    if len(times) < 2:
        msg = f"{len(times)} times; expected at least 2."
        raise ValueError(msg)
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


#: Maps `(field, t, x)` to the velocity `(n, n_dim)` and its divergence, `(n,)` or `(k, n)`.
Divergence = Callable[["Field", float, Tensor], tuple[Tensor, Tensor]]

#: The velocity is the same for all directions, the derivative is not.
_ONE_VALUE: Any = (None, 0)


def exact_divergence(field: Field, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the velocity and the trace of its Jacobian, all directions at once.

    One forward derivative a dimension, vectorised: `n_dim` times the cost of the field. Rows must
    not depend on each other.

    Returns velocity `(n, n_dim)` and divergence `(n,)`.
    """
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        value, change = _derivative(field, t, x, direction.expand_as(x))
        return value, change @ direction

    velocity, diagonal = vmap(along, out_dims=_ONE_VALUE)(basis)
    return velocity, diagonal.sum(0)


def hutchinson_divergence(
    n_probes: int, like: Tensor, generator: torch.Generator | None = None
) -> Divergence:
    """Return an unbiased estimate of the divergence, `(n_probes, n)`, with fixed probes.

    The probes are random signs. With the same probes at all times, the integral over time is
    unbiased too, and the spread over probes is that of the integral.

    `n_probes`: Number of probes. `like`: Points `(n, n_dim)`, for shape, type and device.
    `generator`: Source of the probes.

    Reference: Grathwohl et al., FFJORD, 2019; Hutchinson 1990.
    """
    shape = (n_probes, *like.shape)
    signs = torch.randint(0, 2, shape, generator=generator, device=like.device)
    probes = (2 * signs - 1).to(like.dtype)

    def estimate(field: Field, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        def along(probe: Tensor) -> tuple[Tensor, Tensor]:
            value, change = _derivative(field, t, x, probe)
            return value, (change * probe).sum(1)

        return vmap(along, out_dims=_ONE_VALUE)(probes)

    return estimate


def _derivative(field: Field, t: float, x: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
    """Return the velocity and its derivative along a direction."""
    found: Any = jvp(lambda point: field(t, point), (x,), (direction,))
    return found[0], found[1]


class FlowDensity(NamedTuple):
    """Log-densities and their numerical errors in nats, each `(n,)`.

    `log_density`: Of the points. `step_error`: Absolute difference from the same with half the
    steps (of one step, from two). `standard_error`: Of the probes, zero with the exact trace.
    `source`: The points carried back, `(n, n_dim)`.
    """

    log_density: Tensor
    step_error: Tensor
    standard_error: Tensor
    source: Tensor


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """Return the log-density of independent standard normals, `(n,)`."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)


@checked
def flow_log_density(
    field: Field,
    x: Tensor,
    *,
    n_steps: int = 10,
    solver: Solver = "rk4",
    n_probes: int | None = None,
    generator: torch.Generator | None = None,
    divergence: Divergence = exact_divergence,
    with_step_error: bool = True,
) -> FlowDensity:
    """Return `log p(x_1)` by integrating back to standard normal noise.

    `log p_1(x_1) = log N(x_0; 0, I) - int_0^1 div v(t, x_t) dt`.

    `field`: Velocity from the source (time 0) to the data (time 1); rows must not depend on each
    other. `x`: Points `(n, n_dim)`. `n_steps`, `solver`: Of the integration; an even number lets
    the half be compared. `n_probes`: Probes of Hutchinson's estimate of the divergence; None takes
    the exact trace, `n_dim` forward derivatives an evaluation. `generator`: Source of the probes.
    `divergence`: How the exact trace is taken: a field may know a faster way to its own.
    `with_step_error`: Whether to integrate once more with half the steps; else that error is NaN.
    Raises `ValueError`: If there are fewer than two probes: one has no standard error.

    Reference: Chen et al., Neural ordinary differential equations, 2018; Grathwohl et al., FFJORD,
    2019.
    """
    if n_probes is not None and n_probes < 2:
        msg = f"n_probes={n_probes}; expected at least 2, whose spread gives the standard error."
        raise ValueError(msg)
    if n_probes is not None:
        divergence = hutchinson_divergence(n_probes, x, generator)
    n_columns = n_probes or 1
    fine, start = _back(field, x, divergence, n_steps, solver, n_columns)
    log_density = standard_normal_log_prob(start) - fine.mean(0)
    step_error = torch.full_like(log_density, torch.nan)
    if with_step_error:
        other = n_steps // 2 if n_steps > 1 else 2  # one step has no half
        half, coarse = _back(field, x, divergence, other, solver, n_columns)
        step_error = (standard_normal_log_prob(coarse) - half.mean(0) - log_density).abs()
    spread = torch.zeros_like(log_density)
    if n_probes is not None:
        spread = fine.std(0) / n_probes**0.5
    return FlowDensity(log_density, step_error, spread, start)


def _back(
    field: Field, x: Tensor, divergence: Divergence, n_steps: int, solver: Solver, n_columns: int
) -> tuple[Tensor, Tensor]:
    """Return the integral of the divergence, `(n_columns, n)`, and the source points."""
    n_dim = x.shape[1]

    def augmented(t: float, state: Tensor) -> Tensor:
        velocity, change = divergence(field, t, state[:, :n_dim])
        return torch.cat([velocity, torch.atleast_2d(change).T], dim=1)

    state = torch.cat([x, x.new_zeros(len(x), n_columns)], dim=1)
    (end,) = integrate(augmented, state, times=(1.0, 0.0), n_steps=n_steps, solver=solver)
    return -end[:, n_dim:].T, end[:, :n_dim]
