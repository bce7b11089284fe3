"""Run one stage; the history keeps all stages, each under its own name."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pandas as pd
from scvi.train import TrainRunner

from scvi_perturb._compat import without_tips
from scvi_perturb._random import forked_seed
from scvi_perturb.train._callbacks import Checkpoint, StopAfter

if TYPE_CHECKING:
    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.callbacks import Callback
    from scvi.model.base import BaseModelClass

    from scvi_perturb.train._plan import StagePlan

__all__ = ["StageRunner"]

#: Between the seeds of the processes of a distributed run; larger than the seeds people choose.
RANK_STRIDE = 1_000_003


class StageRunner(TrainRunner):
    """scvi-tools' runner, for a model with several stages.

    It puts the module into training mode first: scvi-tools leaves it in evaluation mode after
    training and after loading, so that every further training would run without dropout. It
    logs under `<stage>_<metric>`, so that a later stage does not overwrite an earlier one.

    Parameters
    ----------
    model, training_plan, data_splitter, max_epochs
        As for scvi-tools' runner.
    stage
        Name of the stage.
    trainer_kwargs
        For scvi-tools' Trainer, `accelerator` and `devices` included.
    """

    def __init__(
        self,
        model: BaseModelClass,
        training_plan: StagePlan,
        data_splitter: LightningDataModule,
        *,
        max_epochs: int,
        stage: str,
        trainer_kwargs: dict[str, object],
    ) -> None:
        kwargs = dict(trainer_kwargs)
        max_steps = kwargs.pop("max_steps", None)
        if isinstance(max_steps, int) and max_steps > 0:
            # By Lightning's own limit of steps, a resumed run would end an epoch twice.
            callbacks = cast("list[Callback]", kwargs.pop("callbacks", None) or [])
            kwargs["callbacks"] = [*callbacks, StopAfter(max_steps)]
        with without_tips():
            super().__init__(
                model,
                training_plan=training_plan,
                data_splitter=data_splitter,
                max_epochs=max_epochs,
                check_val_every_n_epoch=kwargs.pop("check_val_every_n_epoch", 1),
                **kwargs,
            )
        self.stage = stage

    def _run_training_core(self) -> None:
        self.training_plan.module.train()
        seed = getattr(self.data_splitter, "seed", None)
        # Random numbers of the stage's own: the same whether the stage before it was trained or
        # read from a file, and not the same noise in every process.
        own = None if seed is None else seed + RANK_STRIDE * self.trainer.global_rank
        trained = self.model.is_trained_
        with forked_seed(own), without_tips():
            super()._run_training_core()
        # One stage is not the model: `train` says when all are done.
        self.model.is_trained_ = trained

    def _update_history(self) -> None:
        history = dict(self.model.history_ or {})
        # The history of a run that was interrupted is in its checkpoint, if it has one.
        resumable = self.trainer.interrupted and self._checkpoint() is not None
        if self.trainer.is_global_zero and not resumable:
            for name, frame in self._logged().items():
                key = f"{self.stage}_{name}"
                renamed = frame.set_axis([key], axis=1).astype(float)
                history[key] = _after(history.get(key), renamed)
        self.model.history_ = history

    def _checkpoint(self) -> Checkpoint | None:
        found = (c for c in self.trainer.callbacks if isinstance(c, Checkpoint))
        return next(found, None)

    def _logged(self) -> dict[str, pd.DataFrame]:
        checkpoint = self._checkpoint()
        if checkpoint is not None:
            return checkpoint.merged_history()
        return dict(getattr(self.trainer.logger, "history", {}))


def _after(before: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Append the epochs of a further training to those of the earlier ones."""
    if before is None:
        return new
    return pd.concat([before, new.set_axis(new.index + before.index.max() + 1, axis=0)])
