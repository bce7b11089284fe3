"""How both stages are trained, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field

from scvi_perturb.train._plan import PlanConfig

__all__ = ["TrainConfig"]


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Optimisation and stopping of both stages.

    Attributes
    ----------
    representation
        Plan of stage one.
    generator
        Plan of stage two.
    generator_batch_size
        Cells a batch in stage two.
    representation_steps
        Steps of stage one aimed at, where the number of epochs is left open (10 to 100 epochs).
    generator_steps
        Steps of stage two where nothing can be held out to choose them.
    min_generator_steps, max_generator_steps, check_every_n_steps, check_patience
        Search for the number of steps: the fewest and the most that are tried, how often the
        error on held-out conditions is looked at, and how many looks without improvement end
        the search. The fewest keep a lucky early look from winning: with averaged targets the
        error hardly rises after its minimum, but fewer steps are worse.
    early_stopping
        Whether stage one stops when the validation loss no longer falls.
    keep_best
        Whether the weights of stage one's best epoch are restored at its end.
    patience
        Validation epochs without improvement after which stage one stops.
    gradient_clip
        Largest norm of a gradient, in stage one and stage two.
    checkpoint_every_n_epochs
        How often a checkpoint is written, where one is asked for.
    """

    representation: PlanConfig = field(default_factory=PlanConfig)
    generator: PlanConfig = field(
        default_factory=lambda: PlanConfig(lr=1e-3, weight_decay=1e-2, n_warmup_steps=50)
    )
    generator_batch_size: int = 256
    representation_steps: int = 1500
    generator_steps: int = 1000
    min_generator_steps: int = 500
    max_generator_steps: int = 3000
    check_every_n_steps: int = 100
    check_patience: int = 4
    early_stopping: bool = True
    keep_best: bool = True
    patience: int = 15
    gradient_clip: tuple[float, float] = (1e3, 1.0)
    checkpoint_every_n_epochs: int = 1
