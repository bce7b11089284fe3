"""A chain of conditional spline transforms: invertible, with its density, in one pass."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from pyro.distributions.transforms import ConditionalSpline
from pyro.nn import DenseNN
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["SplineChain"]

#: Splines are the identity beyond; what they transform has standard deviation one.
_BOUND = 5.0


class SplineChain(nn.Module):
    """Coupling layers of monotone rational splines, given a condition.

    In each layer half of the dimensions, in an order of its own, set with the condition the
    splines that move the other half.

    Parameters
    ----------
    n_dim
        Dimension of the points, at least 2.
    n_condition
        Dimension of the condition.
    n_transforms, n_bins, width
        Number of layers, bins of a spline, width of the networks that set them.

    References
    ----------
    Durkan et al., Neural spline flows, 2019; Dolatabadi et al. 2020 (linear rational splines).
    """

    orders: Tensor

    def __init__(
        self, n_dim: int, n_condition: int, *, n_transforms: int = 6, n_bins: int = 8,
        width: int = 128,
    ) -> None:  # fmt: skip
        super().__init__()
        self.n_kept = n_dim // 2
        n_moved = n_dim - self.n_kept
        sizes = [n_moved * n_bins, n_moved * n_bins, n_moved * (n_bins - 1), n_moved * n_bins]
        self.splines = nn.ModuleList(
            ConditionalSpline(
                DenseNN(self.n_kept + n_condition, [width, width], sizes, nonlinearity=nn.SiLU()),
                n_moved,
                n_bins,
                bound=_BOUND,
                order="linear",
            )
            for _ in range(n_transforms)
        )
        orders: list[Tensor] = []
        for i in range(n_transforms):
            # Every second order is the one before backwards: what was kept is moved.
            orders.append(orders[-1].flip(0) if i % 2 else torch.randperm(n_dim))
        self.register_buffer("orders", torch.stack(orders))

    def forward(self, noise: Tensor, condition: Tensor) -> Tensor:
        """Return the points of noise `(n, n_dim)`, given `condition (n, n_condition)`."""
        return self._through(noise, condition, range(len(self.splines)), inverse=False)[0]

    def inverse(self, points: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noise of points, and the log of the volume change `(n,)` on the way."""
        return self._through(points, condition, reversed(range(len(self.splines))), inverse=True)

    def _through(
        self, x: Tensor, condition: Tensor, layers: Iterable[int], *, inverse: bool
    ) -> tuple[Tensor, Tensor]:
        volume = x.new_zeros(len(x))
        for i in layers:
            order = self.orders[i]
            kept, moved = x[:, order[: self.n_kept]], x[:, order[self.n_kept :]]
            layer: Any = self.splines[i]
            spline = layer.condition(torch.cat([kept, condition], dim=1))
            end = spline.inv(moved) if inverse else spline(moved)
            change = spline.log_abs_det_jacobian(*((end, moved) if inverse else (moved, end)))
            volume = volume + (-change if inverse else change).sum(1)
            x = torch.empty_like(x).index_copy(1, order, torch.cat([kept, end], dim=1))
        return x, volume
