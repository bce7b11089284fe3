"""What is asked of a flow."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb.module._conditions import ConditionTensors

__all__ = ["Asked"]


class Asked(NamedTuple):
    """What is asked of a flow: for each of `B` cells a condition, a reference and a context.

    Attributes
    ----------
    conditions
        The different conditions, `n` of them.
    which
        Condition of each cell, `(B,)`, in `0..n-1`.
    reference
        Latent of each cell's reference: the control cell itself, or the mean of its control
        population, `(B, n_latent)`.
    context
        Context code of each cell, `(B,)`.
    """

    conditions: ConditionTensors
    which: Tensor
    reference: Tensor
    context: Tensor

    def part(self, cells: Tensor) -> Asked:
        """Return the same for some of the cells."""
        which, reference, context = (x[cells] for x in self[1:])
        return Asked(self.conditions, which, reference, context)
