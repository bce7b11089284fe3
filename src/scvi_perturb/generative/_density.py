"""The density of what a flow carries: change of variables along its path."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from scvi_perturb.generative._ode import Solver, integrate
from scvi_perturb.generative._trace import exact_divergence, hutchinson_divergence, rademacher

if TYPE_CHECKING:
    from scvi_perturb.generative._ode import Field
    from scvi_perturb.generative._trace import Divergence

__all__ = ["FlowDensity", "flow_log_density", "standard_normal_log_prob"]


class FlowDensity(NamedTuple):
    """Log-densities and how far off they may be, nats, each `(n,)`.

    Attributes
    ----------
    log_density
        Of the points.
    step_error
        Absolute difference from the same with half the steps (of one step, from two).
    standard_error
        Of the probes, zero with the exact trace.
    source
        The points carried back, `(n, n_dim)`.
    """

    log_density: Tensor
    step_error: Tensor
    standard_error: Tensor
    source: Tensor


def standard_normal_log_prob(x: Tensor) -> Tensor:
    """Return the log-density of independent standard normals, `(n,)`."""
    return torch.distributions.Normal(0.0, 1.0).log_prob(x).sum(1)


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
    """Return `log p(x_1)` by following points back to a source of standard normal noise.

    `log p_1(x_1) = log N(x_0; 0, I) - int_0^1 div v(t, x_t) dt`.

    Parameters
    ----------
    field
        Velocity from the source (time 0) to the data (time 1); rows must not depend on each
        other.
    x
        Points `(n, n_dim)`.
    n_steps, solver
        Of the integration; an even number lets the half be compared.
    n_probes
        Probes of Hutchinson's estimate of the divergence; None takes the exact trace, `n_dim`
        forward derivatives an evaluation.
    generator
        Source of the probes.
    divergence
        How the exact trace is taken: a field may know a faster way to its own.
    with_step_error
        Whether to integrate once more with half the steps; else that error is NaN.

    Raises
    ------
    ValueError
        If there are fewer than two probes: one has no standard error.

    References
    ----------
    Chen et al., Neural ordinary differential equations, 2018; Grathwohl et al., FFJORD, 2019.
    """
    if n_probes is not None and n_probes < 2:
        msg = f"n_probes={n_probes}; expected at least 2, whose spread gives the standard error."
        raise ValueError(msg)
    if n_probes is not None:
        divergence = hutchinson_divergence(rademacher(n_probes, x, generator))
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
