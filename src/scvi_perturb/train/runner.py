"""Train one stage with Lightning."""

from __future__ import annotations

import functools
import inspect
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, TypeVar, cast

import lightning
import pandas as pd
import torch
from scvi.train import Trainer, TrainRunner

from scvi_perturb._checks import checked
from scvi_perturb._compat import quiet_lightning
from scvi_perturb._core import ALONE, forked_seed
from scvi_perturb._files import write_bytes
from scvi_perturb._state import from_bytes, to_bytes
from scvi_perturb.train.callbacks import BestWeights, Checkpoint, StateFiles, StopAfter
from scvi_perturb.train.plan import PlanConfig, StagePlan

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from lightning.pytorch import LightningDataModule
    from lightning.pytorch.callbacks import Callback
    from scvi.model.base import BaseModelClass
    from scvi.module.base import BaseModuleClass

_Train = TypeVar("_Train", bound="Callable[..., None]")
#: Between the seeds of the processes of a distributed run; larger than the seeds people choose.
RANK_STRIDE = 1_000_003


@checked
def one_training(train: _Train) -> _Train:
    """Let one `train` run at a time, and refuse arguments that neither it nor the Trainer has."""
    own = set(inspect.signature(train).parameters)
    makers = (TrainRunner, Trainer, lightning.Trainer)
    legal = {name for maker in makers for name in inspect.signature(maker).parameters}

    @functools.wraps(train)
    def run(*args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        unknown = sorted(set(kwargs) - own - legal)
        if unknown:
            near = get_close_matches(unknown[0], own | legal, n=3)
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            msg = f"train() and the Trainer have no argument {unknown[0]!r}.{hint}"
            raise TypeError(msg)
        _check_precision(kwargs.get("precision"))
        with ALONE:
            train(*args, **kwargs)

    return cast("_Train", run)


def _check_precision(precision: object) -> None:
    """Raise `ValueError` for a precision in which training would not hold."""
    if precision in {None, 32, "32", "32-true", "bf16", "bf16-mixed"}:
        return
    msg = (
        f"precision={precision!r} is not supported; expected '32-true' or 'bf16-mixed'. Numbers of "
        "half precision end at 65,504, below the library size of many cells, and weights kept in "
        "bfloat16 do not take up small steps; data are single precision."
    )
    raise ValueError(msg)


class StageRunner(TrainRunner):
    """scvi-tools' runner, for a model with several stages.

    It puts the module into training mode first: scvi-tools leaves it in evaluation mode after
    training and after loading, so that further training would run without dropout. It logs under
    `<stage>_<metric>`, so that a later stage does not overwrite an earlier one.

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
        with quiet_lightning():
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
        with forked_seed(own), quiet_lightning(), _interruptible():
            super()._run_training_core()
        # One stage is not the model: `train` sets it when all are done.
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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let an interruption through as what it is.

    Lightning turns it into the end of the interpreter, and ignores all later ones.
    """
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        if handler is not None and signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


def _after(before: pd.DataFrame | None, new: pd.DataFrame) -> pd.DataFrame:
    """Append the epochs of a further training to those of the earlier ones."""
    if before is None:
        return new
    return pd.concat([before, new.set_axis(new.index + before.index.max() + 1, axis=0)])


@checked
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
    compile
        Whether the module is compiled, where that works.
    """

    name: str
    module: BaseModuleClass
    data: LightningDataModule
    plan: PlanConfig
    max_epochs: int
    patience: int | None = None
    keep_best: bool = True
    gradient_clip: float | None = None
    compile: bool = False


@checked
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
        state = from_bytes(finished.read_bytes(), where=finished)
        stage.module.load_state_dict(state["weights"])
        model.history_ = {**(model.history_ or {}), **state["history"]}
        return
    kwargs = _trainer_kwargs(stage, trainer_kwargs, checkpoint_dir, every_n_epochs)
    plan = StagePlan(stage.module, stage.plan, compile_module=stage.compile)
    runner = StageRunner(
        model,
        plan,
        stage.data,
        max_epochs=stage.max_epochs,
        stage=stage.name,
        trainer_kwargs=kwargs,
    )
    try:
        runner()
    except torch.OutOfMemoryError as error:
        msg = (
            f"The device ran out of memory in the stage {stage.name!r}, in batches of "
            f"{getattr(stage.data, 'batch_size', '?')} cells. Lower batch_size, or "
            "TrainConfig.generator_batch_size in the stage 'generator'; pass "
            "precision='bf16-mixed'; or train on fewer genes or with smaller layers."
        )
        raise torch.OutOfMemoryError(msg) from error
    if finished and checkpoint_dir and runner.trainer.is_global_zero:
        history = {k: v for k, v in model.history_.items() if k.startswith(f"{stage.name}_")}
        state = {"weights": stage.module.state_dict(), "history": history}
        write_bytes(finished, to_bytes(state))
        (checkpoint_dir / f"{stage.name}.ckpt").unlink(missing_ok=True)


def _trainer_kwargs(
    stage: Stage, given: dict[str, Any], checkpoint_dir: Path | None, every_n_epochs: int
) -> dict[str, Any]:
    """Return the arguments of the Trainer, with the callbacks of the stage."""
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
        plugins = kwargs.pop("plugins", None) or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), StateFiles()]
        if unfinished.exists():
            kwargs["ckpt_path"] = str(unfinished)
    if not has_validation:
        kwargs["limit_val_batches"] = 0  # Lightning warns of a loader without batches
    kwargs.setdefault("log_every_n_steps", 1)  # of any small screen an epoch is shorter than 10
    if stage.gradient_clip is not None:
        kwargs.setdefault("gradient_clip_val", stage.gradient_clip)
    return {**kwargs, "callbacks": callbacks}
