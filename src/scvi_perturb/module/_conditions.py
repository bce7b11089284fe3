"""Conditions as modules take them."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ConditionTensors"]


class ConditionTensors(NamedTuple):
    """Conditions as tensors: `component`, `dose`, `mask (n, m)` and `time (n,)`."""

    component: Tensor
    dose: Tensor
    mask: Tensor
    time: Tensor

    def rows(self, index: Tensor) -> ConditionTensors:
        """Return the conditions at `index`."""
        return ConditionTensors(*(field[index] for field in self))
