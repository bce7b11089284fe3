"""Match the points of two samples by mini-batch optimal transport."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from scvi_perturb._checks import checked

CouplingMethod = Literal["exact", "random", "sinkhorn", "unbalanced"]

#: Entropic regularisation, as a share of the mean cost.
_REGULARISATION: Final = 0.05
#: Price of using sources unevenly, as a share of the mean cost.
_RELAXATION: Final = 0.2
#: Most sweeps of the Sinkhorn iteration, and the relative change of a sweep at which it stops.
_SWEEPS: Final = 500
_TOLERANCE: Final = 1e-3


@checked
def couple(
    x0: Tensor,
    x1: Tensor,
    *,
    method: CouplingMethod = "exact",
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Match every row of `x1` with a row of `x0` under the squared Euclidean cost.

    `x0`: Source points `(n_0, n_dim)`, for example control cells. `x1`: Target points `(n_1,
    n_dim)`, for example perturbed cells. `method`: "exact": the assignment of least total cost;
    where `n_1 > n_0`, sources are used `n_1 / n_0` times each, rounded up or down. "sinkhorn": a
    source drawn for each target from the entropic transport plan. "unbalanced": the same, where
    sources need not be used evenly: a departure of their use from even costs its Kullback-Leibler
    divergence, so that a subpopulation that grew or shrank is not carried into another. "random":
    an assignment without regard to cost. `generator`: Source of randomness, on the device of the
    points. Without one, all but "exact" differ from call to call. Returns indices into `x0` and
    into `x1`, both `(n_1,)`; the second is `0 .. n_1 - 1`. Raises `ValueError`: If the method is
    not known, a side is empty or the dimensions differ.

    Reference: Tong et al., Improving and generalizing flow-based generative models with minibatch
    optimal transport, 2024; Cuturi, Sinkhorn distances, 2013; Chizat et al., Scaling algorithms for
    unbalanced optimal transport problems, 2018.
    """
    if not len(x0) or not len(x1) or x0.shape[1:] != x1.shape[1:]:
        msg = (
            f"Points of shapes {tuple(x0.shape)} and {tuple(x1.shape)} cannot be coupled; expected "
            "at least one point on each side and the same dimension."
        )
        raise ValueError(msg)
    x0, x1 = x0.detach(), x1.detach()
    targets = torch.arange(len(x1), device=x1.device)
    if generator is None:
        generator = torch.Generator(x1.device)
        generator.seed()
    if method == "random":
        return _fair_sources(len(x0), len(x1), generator), targets
    cost = torch.cdist(x1.float(), x0.float()).square_()
    if method == "exact":
        return _assign(cost, generator), targets
    plan = _sinkhorn(cost, _RELAXATION if method == "unbalanced" else None)
    return torch.multinomial(plan, 1, generator=generator).squeeze(1), targets


def _fair_sources(n_sources: int, n_targets: int, generator: torch.Generator) -> Tensor:
    """Return `n_targets` sources in random order, each used equally often but for one."""
    device = generator.device
    rounds = -(-n_targets // n_sources)
    orders = [torch.randperm(n_sources, generator=generator, device=device) for _ in range(rounds)]
    sources = torch.cat(orders)[:n_targets]
    return sources[torch.randperm(n_targets, generator=generator, device=device)]


def _assign(cost: Tensor, generator: torch.Generator) -> Tensor:
    """Return the sources of the cheapest assignment for a cost `(n_targets, n_sources)`.

    With more targets than sources each source is offered `n_targets // n_sources` times and a
    random subset of them once more.
    """
    n_targets, n_sources = cost.shape
    repeats = n_targets // n_sources
    if repeats == 0:
        offered = torch.arange(n_sources, device=cost.device)
    else:
        spare = torch.randperm(n_sources, generator=generator, device=cost.device)
        spare = spare[: n_targets - repeats * n_sources]
        offered = torch.cat([torch.arange(n_sources, device=cost.device).repeat(repeats), spare])
    _, columns = linear_sum_assignment(cost[:, offered].cpu().numpy())
    return offered[torch.from_numpy(np.asarray(columns)).to(cost.device)]


def _sinkhorn(cost: Tensor, relaxation: float | None = None) -> Tensor:
    """Return the entropic transport plan between uniform weights `(n_targets, n_sources)`.

    Every target gets its weight. With a relaxation, a share of the mean cost, sources may be used
    unevenly at that price.
    """
    n_targets, n_sources = cost.shape
    cost = cost.double()
    scale = (_REGULARISATION * cost.mean()).clamp_min(1e-12)
    power = 1.0 if relaxation is None else relaxation / (relaxation + _REGULARISATION)
    # With the least cost of each row taken off, no row of the kernel vanishes.
    kernel = torch.exp((cost.amin(1, keepdim=True) - cost) / scale)
    rows = torch.full((n_targets,), 1 / n_targets, dtype=torch.float64, device=cost.device)
    columns = torch.ones(n_sources, dtype=torch.float64, device=cost.device)
    for sweep in range(_SWEEPS):
        reached = rows @ kernel
        before = columns
        columns = (1 / (n_sources * reached.clamp_min(1e-300))) ** power
        rows = 1 / (n_targets * (kernel @ columns))
        if sweep % 10 == 9 and float((columns / before - 1).abs().max()) < _TOLERANCE:
            break
    return rows[:, None] * kernel * columns
