"""`train` of models in two stages: the representation, then the generator in its latent."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scvi_perturb.model._checks import check_folder, check_training_cells
from scvi_perturb.model._fit import Fit
from scvi_perturb.model._trained_on import TrainedOn
from scvi_perturb.train import TrainConfig

if TYPE_CHECKING:
    from scvi_perturb.data import Split
    from scvi_perturb.module import TwoStageModule

__all__ = ["TwoStageTraining"]


class TwoStageTraining(TrainedOn):
    """`train` of models with a representation and a generator."""

    module: TwoStageModule
    #: Arguments of scVI's module where stage one is a trained scVI.
    scvi_settings_: dict[str, Any] | None
    #: Steps of stage two that the held-out conditions asked for, if they were asked.
    n_steps_: int | None

    def train(
        self,
        max_epochs: int | None = None,
        *,
        split: Split | None = None,
        n_steps: int | None = None,
        batch_size: int = 256,
        seed: int = 0,
        checkpoint_dir: str | Path | None = None,
        config: TrainConfig | None = None,
        **trainer_kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Train both stages.

        Parameters
        ----------
        max_epochs
            Epochs of stage one at most; None chooses by the number of cells. It stops before
            when the validation loss no longer falls, with the best weights.
        split
            Which cells train, validate and are held out, see :func:`scvi_perturb.data.split`;
            None validates on a tenth of the cells.
        n_steps
            Steps of stage two. None chooses them by the error on conditions held out from the
            training cells, then trains on all of them for as many steps: the error on held-out
            *cells* of trained conditions goes on falling long after that on conditions rises.
        batch_size
            Cells a batch in stage one.
        seed
            Seed of order, noise and dropout.
        checkpoint_dir
            Where the state of the run is written; calling `train` again with the same folder
            after a kill goes on where it stopped, and after the end only reads the result. A
            folder of another run is refused.
        config
            Optimisation and stopping.
        **trainer_kwargs
            For scvi-tools' Trainer: `accelerator`, `devices`, `strategy`, `enable_progress_bar`,
            `precision`, ...

        Raises
        ------
        SchemaError
            When the model has no data; when the training cells hold no control, in all or in one
            context, too few treated cells, cells without counts, or library sizes below the
            counts; when `checkpoint_dir` holds another run.
        """
        reader = self._reader(None)
        parts = self._parts(split, len(reader), seed)
        check_training_cells(reader, parts.train, self._screen)
        config = config or TrainConfig()
        folder = None if checkpoint_dir is None else Path(checkpoint_dir)
        if folder is not None:
            asked = {"max_epochs": max_epochs, "n_steps": n_steps, "batch_size": batch_size}
            check_folder(
                folder, self._describe_run(parts, asked | {"seed": seed, "config": config})
            )
        fit = Fit(self, reader, parts, config, trainer_kwargs, folder)
        if self._trains_representation:
            fit.representation(max_epochs, batch_size=batch_size, seed=seed)
        fit.generator(n_steps, seed=seed)
        self._remember(reader, parts, split, seed)
