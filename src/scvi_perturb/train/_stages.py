"""One stage of training: module, data, plan; stop early; restore the best; go on after a kill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from scvi_perturb.train._callbacks import BestWeights, Checkpoint
from scvi_perturb.train._plan import PlanConfig, StagePlan
from scvi_perturb.train._runner import StageRunner

if TYPE_CHECKING:
    from pathlib import Path

    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.callbacks import Callback
    from scvi.model.base import BaseModelClass
    from scvi.module.base import BaseModuleClass


__all__ = ["Stage", "fit_stage"]


@dataclass(frozen=True, slots=True)
class Stage:
    """What one stage trains, and until when.

    Attributes
    ----------
    name
        Prefix of its history and of its files.
    module
        The part of the model to train.
    data
        Its batches.
    plan
        Optimiser and schedule.
    max_epochs
        Epochs at most.
    patience
        Validation epochs without improvement before it stops; None never stops early.
    keep_best
        Whether the weights of the best validation loss are restored at the end.
    gradient_clip
        Largest norm of a gradient.
    """

    name: str
    module: BaseModuleClass
    data: LightningDataModule
    plan: PlanConfig
    max_epochs: int
    patience: int | None = None
    keep_best: bool = True
    gradient_clip: float | None = None


def fit_stage(
    model: BaseModelClass,
    stage: Stage,
    *,
    trainer_kwargs: dict[str, Any],
    checkpoint_dir: Path | None = None,
    every_n_epochs: int = 1,
) -> None:
    """Train one stage of a model.

    Parameters
    ----------
    model
        The model whose `module` holds the stage's module, and whose `history_` grows.
    stage
        What to train.
    trainer_kwargs
        For the Trainer; what the stage sets itself wins.
    checkpoint_dir
        Where the state of the run is written. A stage that is found finished there is loaded,
        an unfinished one goes on where it stopped.
    every_n_epochs
        How often the state is written.
    """
    finished = checkpoint_dir and checkpoint_dir / f"{stage.name}.pt"
    if finished and finished.exists():
        state = torch.load(finished, map_location=stage.module.device, weights_only=False)
        stage.module.load_state_dict(state["weights"])
        model.history_ = {**(model.history_ or {}), **state["history"]}
        return
    kwargs = _trainer_kwargs(stage, trainer_kwargs, checkpoint_dir, every_n_epochs)
    plan = StagePlan(stage.module, stage.plan)
    runner = StageRunner(
        model,
        plan,
        stage.data,
        max_epochs=stage.max_epochs,
        stage=stage.name,
        trainer_kwargs=kwargs,
    )
    runner()
    if finished and checkpoint_dir and runner.trainer.is_global_zero:
        history = {k: v for k, v in model.history_.items() if k.startswith(f"{stage.name}_")}
        written = finished.with_suffix(".part")
        torch.save({"weights": stage.module.state_dict(), "history": history}, written)
        written.replace(finished)
        (checkpoint_dir / f"{stage.name}.ckpt").unlink(missing_ok=True)


def _trainer_kwargs(
    stage: Stage, given: dict[str, Any], checkpoint_dir: Path | None, every_n_epochs: int
) -> dict[str, Any]:
    """Return the arguments of the Trainer, with the callbacks that the stage asks for."""
    # Batches are already sharded over processes by the data module.
    kwargs = {**given, "use_distributed_sampler": False}
    callbacks: list[Callback] = list(kwargs.pop("callbacks", None) or [])
    has_validation = getattr(stage.data, "n_val", 0) > 0
    if has_validation and (stage.keep_best or stage.patience is not None):
        best = BestWeights("validation_loss", patience=stage.patience, restore=stage.keep_best)
        callbacks.append(best)
    if checkpoint_dir is not None:
        checkpoint_dir.mkdir(parents=True, exist_ok=True)
        unfinished = checkpoint_dir / f"{stage.name}.ckpt"
        callbacks.append(Checkpoint(unfinished, every_n_epochs=every_n_epochs))
        if unfinished.exists():
            kwargs["ckpt_path"] = str(unfinished)
    if not has_validation:
        kwargs["limit_val_batches"] = 0  # Lightning warns of a loader without batches
    kwargs.setdefault("log_every_n_steps", 1)  # of any small screen an epoch is shorter than 10
    if stage.gradient_clip is not None:
        kwargs.setdefault("gradient_clip_val", stage.gradient_clip)
    return {**kwargs, "callbacks": callbacks}
