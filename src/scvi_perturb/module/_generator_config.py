"""What can be chosen of every generator in the latent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scvi_perturb._errors import check_choice

if TYPE_CHECKING:
    from scvi_perturb.generative import CouplingMethod

__all__ = ["GeneratorConfig"]


@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The network and how it is conditioned.

    Attributes
    ----------
    width, n_blocks, dropout
        Residual MLP.
    n_condition
        Dimension of the embedded condition.
    combine
        How the components of a combination meet: `"sum"`, or `"attention"` before the sum.
    n_neighbours
        From control cells: displacements are averaged over this many pairs with the nearest
        control cells, in the same context and condition. A single optimal-transport partner is
        mostly chance in many dimensions, and a network learns the chance; 1 keeps single pairs.
    residual
        From control cells: share of the difference between a single pair's displacement and the
        average that is kept, so that cells still differ in their response.
    context_embedding
        Whether contexts also have embeddings of their own. The reference says what the context
        is, also for contexts never trained on; few contexts are too few to learn more from.
    condition_dropout
        Share of cells whose condition is hidden in training, for guidance.
    null_fraction
        Share of pairs in which a control cell answers itself under no perturbation. This is
        what makes "control in, no effect out" hold.
    ema_decay
        Of the moving average of the weights that samples are drawn with.
    """

    width: int = 128
    n_blocks: int = 2
    dropout: float = 0.0
    n_condition: int = 64
    combine: Literal["sum", "attention"] = "sum"
    n_neighbours: int = 20
    residual: float = 0.3
    context_embedding: bool = False
    condition_dropout: float = 0.1
    null_fraction: float = 0.25
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice("combine", self.combine, ("sum", "attention"))

    @property
    def reference(self) -> Literal["cell", "population", "none"]:
        """What is known of the control: a cell, the mean of its population, or nothing."""
        raise NotImplementedError

    @property
    def displaced(self) -> bool:
        """Whether the displacement from the reference is drawn, and not the latent itself."""
        return self.reference == "cell"

    @property
    def matching(self) -> CouplingMethod:
        """How treated cells are matched with control cells."""
        return "exact"
