"""What can be chosen of the diffusion."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from scvi_perturb._errors import check_choice
from scvi_perturb.module._generator_config import GeneratorConfig

if TYPE_CHECKING:
    from scvi_perturb.generative import Transition

__all__ = ["DiffusionConfig"]

_MOST_BINS: Final = 32


@dataclass(frozen=True, slots=True)
class DiffusionConfig(GeneratorConfig):
    """The denoiser and how it is conditioned.

    Attributes
    ----------
    width, n_blocks, dropout, n_condition, combine, n_neighbours, residual, context_embedding
        See :class:`scvi_perturb.module.GeneratorConfig`.
    condition_dropout, null_fraction, ema_decay
        The same.
    reference
        What is known of the control. `"cell"`: each cell starts from a control cell, and the
        displacement from there is what is drawn. `"population"`: the mean of the control
        population is known, and the latent itself is drawn. `"none"`: nothing is known.
    schedule, parameterisation
        Noise schedule, and what the network predicts.
    min_snr_gamma
        Limit of the loss weight (Hang et al. 2023); None weighs all times alike.
    n_bins, transition
        Of `space="counts"`: bins of counts, and whether noise is an absorbing mask or a bin drawn
        uniformly (`"absorbing"`, `"uniform"`).
    n_loss_genes
        Of `space="counts"`: genes that the loss of a step of training is of, drawn anew each step;
        None for all, at a cost that grows with them.
    """

    reference: Literal["cell", "population", "none"] = "cell"
    schedule: Literal["cosine", "linear"] = "cosine"
    parameterisation: Literal["v", "eps", "x0"] = "v"
    min_snr_gamma: float | None = 5.0
    n_bins: int = 24
    transition: Transition = "absorbing"
    n_loss_genes: int | None = 512

    def __post_init__(self) -> None:
        """Check the choices."""
        GeneratorConfig.__post_init__(self)
        check_choice("reference", self.reference, ("cell", "population", "none"))
        check_choice("schedule", self.schedule, ("cosine", "linear"))
        check_choice("parameterisation", self.parameterisation, ("v", "eps", "x0"))
        check_choice("transition", self.transition, ("absorbing", "uniform"))
        if self.n_loss_genes is not None and self.n_loss_genes < 1:
            msg = f"n_loss_genes={self.n_loss_genes}; expected at least 1, or None for all."
            raise ValueError(msg)
        if not 2 <= self.n_bins <= _MOST_BINS:
            msg = f"n_bins={self.n_bins}; expected 2 to {_MOST_BINS}."
            raise ValueError(msg)
