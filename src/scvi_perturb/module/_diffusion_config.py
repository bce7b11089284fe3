"""What can be chosen of the diffusion, and conditions as it takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from scvi_perturb._errors import check_choice

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["ConditionTensors", "DiffusionConfig"]


@dataclass(frozen=True, slots=True)
class DiffusionConfig:
    """The denoiser and how it is conditioned.

    Attributes
    ----------
    width, n_blocks, dropout
        Residual MLP.
    n_condition
        Dimension of the embedded condition.
    combine
        How the components of a combination meet: `"sum"`, or `"attention"` before the sum.
    reference
        What is known of the control. `"cell"`: each cell starts from a control cell, and the
        displacement from there is what is drawn. `"population"`: the mean of the control
        population is known, and the latent itself is drawn. `"none"`: nothing is known.
    n_neighbours
        With `"cell"`: displacements are averaged over this many pairs with the nearest control
        cells, in the same context and condition. A single optimal-transport partner is mostly
        chance in many dimensions, and a network learns the chance; 1 keeps single pairs.
    residual
        With `"cell"`: share of the difference between a single pair's displacement and the
        average that is kept, so that cells still differ in their response.
    context_embedding
        Whether contexts also have embeddings of their own. The reference says what the context
        is, also for contexts never trained on; few contexts are too few to learn more from.
    schedule, parameterisation
        Noise schedule, and what the network predicts.
    min_snr_gamma
        Limit of the loss weight (Hang et al. 2023); None weighs all times alike.
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
    reference: Literal["cell", "population", "none"] = "cell"
    n_neighbours: int = 20
    residual: float = 0.3
    context_embedding: bool = False
    schedule: Literal["cosine", "linear"] = "cosine"
    parameterisation: Literal["v", "eps", "x0"] = "v"
    min_snr_gamma: float | None = 5.0
    condition_dropout: float = 0.1
    null_fraction: float = 0.25
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        """Check the choices."""
        check_choice("combine", self.combine, ("sum", "attention"))
        check_choice("reference", self.reference, ("cell", "population", "none"))
        check_choice("schedule", self.schedule, ("cosine", "linear"))
        check_choice("parameterisation", self.parameterisation, ("v", "eps", "x0"))


class ConditionTensors(NamedTuple):
    """Conditions as tensors: `component`, `dose`, `mask (n, m)` and `time (n,)`."""

    component: Tensor
    dose: Tensor
    mask: Tensor
    time: Tensor

    def rows(self, index: Tensor) -> ConditionTensors:
        """Return the conditions at `index`."""
        return ConditionTensors(*(field[index] for field in self))
