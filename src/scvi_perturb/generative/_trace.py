"""The divergence of a velocity field: exact, or estimated with random probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import jvp, vmap

if TYPE_CHECKING:
    from scvi_perturb.generative._ode import Field

__all__ = ["Divergence", "exact_divergence", "hutchinson_divergence", "rademacher"]

#: Maps `(field, t, x)` to the velocity `(n, n_dim)` and its divergence, `(n,)` or `(k, n)`.
Divergence = Callable[["Field", float, Tensor], tuple[Tensor, Tensor]]

#: The velocity is the same for all directions, the derivative is not.
_ONE_VALUE: Any = (None, 0)


def exact_divergence(field: Field, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the velocity and the trace of its Jacobian, all directions at once.

    One forward derivative a dimension, vectorised: `n_dim` times the cost of the field. Rows must
    not depend on each other.

    Returns
    -------
    tuple
        Velocity `(n, n_dim)` and divergence `(n,)`.
    """
    basis = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)

    def along(direction: Tensor) -> tuple[Tensor, Tensor]:
        value, change = _derivative(field, t, x, direction.expand_as(x))
        return value, change @ direction

    velocity, diagonal = vmap(along, out_dims=_ONE_VALUE)(basis)
    return velocity, diagonal.sum(0)


def rademacher(n_probes: int, like: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return probes of signs, `(n_probes, n, n_dim)`."""
    shape = (n_probes, *like.shape)
    signs = torch.randint(0, 2, shape, generator=generator, device=like.device)
    return (2 * signs - 1).to(like.dtype)


def hutchinson_divergence(probes: Tensor) -> Divergence:
    """Return an unbiased estimate of the divergence that keeps its probes.

    With the same probes at all times, the integral over time is unbiased too, and the spread over
    probes is that of the integral.

    Parameters
    ----------
    probes
        `(n_probes, n, n_dim)`, see :func:`rademacher`.

    Returns
    -------
    Divergence
        Its second result is `(n_probes, n)`.

    References
    ----------
    Grathwohl et al., FFJORD, 2019; Hutchinson 1990.
    """

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
