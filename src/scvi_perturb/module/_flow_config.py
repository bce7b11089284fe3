"""What can be chosen of the flow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scvi_perturb._errors import check_choice
from scvi_perturb.module._generator_config import GeneratorConfig

if TYPE_CHECKING:
    from scvi_perturb.generative import CouplingMethod, TimeLaw

__all__ = ["FlowConfig"]


@dataclass(frozen=True, slots=True)
class FlowConfig(GeneratorConfig):
    """The velocity field and how it is conditioned.

    Attributes
    ----------
    width, n_blocks, dropout, n_condition, combine, n_neighbours, residual, context_embedding
        See :class:`scvi_perturb.module.GeneratorConfig`.
    condition_dropout, null_fraction, ema_decay
        The same.
    source
        Where cells start: `"control"`, at a control cell, or `"noise"`, which gives a density.
    kind
        `"continuous"`: an ordinary differential equation. `"coupling"`: a chain of conditional
        spline transforms, from noise only; density and samples in one pass.
    coupling
        How treated cells are matched with control cells of their context and batch: `"exact"` or
        entropic (`"sinkhorn"`) optimal transport, `"unbalanced"` where proportions of
        subpopulations change, or `"random"`.
    times
        Law of the times in training.
    n_transforms, n_bins
        Of `kind="coupling"`: transforms, and bins of their splines.
    """

    source: Literal["control", "noise"] = "control"
    kind: Literal["continuous", "coupling"] = "continuous"
    coupling: CouplingMethod = "exact"
    times: TimeLaw = "uniform"
    n_transforms: int = 6
    n_bins: int = 8

    def __post_init__(self) -> None:
        """Check the choices."""
        GeneratorConfig.__post_init__(self)
        check_choice("source", self.source, ("control", "noise"))
        check_choice("kind", self.kind, ("continuous", "coupling"))
        check_choice("coupling", self.coupling, ("exact", "sinkhorn", "unbalanced", "random"))
        check_choice("times", self.times, ("uniform", "logit-normal"))
        if self.n_transforms < 1 or self.n_bins < 2:
            msg = f"n_transforms={self.n_transforms}, n_bins={self.n_bins}; expected >= 1 and >= 2."
            raise ValueError(msg)
        if self.kind == "coupling" and self.source != "noise":
            msg = "kind='coupling' has a density and starts from noise; pass source='noise' too."
            raise ValueError(msg)

    @property
    def reference(self) -> Literal["cell", "population", "none"]:
        """What is known of the control: a cell, or the mean of its population."""
        return "cell" if self.source == "control" else "population"

    @property
    def displaced(self) -> bool:
        """What is drawn is always relative to the reference."""
        return True

    @property
    def matching(self) -> CouplingMethod:
        """How treated cells are matched with control cells."""
        return self.coupling
