"""Optimisation: configuration and training plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import TYPE_CHECKING, Any, Final, Literal

import torch
from scvi.train import TrainingPlan

from scvi_perturb._checks import checked
from scvi_perturb._core import warn

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi.module.base import BaseModuleClass, LossOutput

    from scvi_perturb._core import Batch

#: Of models whose prior is never drawn from.
MAX_KL_WEIGHT: Final = 0.1


@checked
@dataclass(frozen=True, slots=True)
class PlanConfig:
    """How a stage is optimised.

    Attributes
    ----------
    lr, weight_decay
        Of AdamW (eps 1e-8; scvi-tools' default of 0.01 slows small gradients down).
    n_warmup_steps
        Steps over which the learning rate rises from zero.
    n_steps
        Steps after which it has fallen to `final_lr_fraction` along a cosine; None keeps it.
    final_lr_fraction
        Share of `lr` left at the end.
    max_kl_weight, n_steps_kl_warmup
        Weight of the divergence and the steps over which it rises (in steps, since the number
        of epochs shrinks as data grow). None takes what measured best for the model: 0.1 where the
        prior is never drawn from, 1 where it is.
    """

    lr: float = 2e-3
    weight_decay: float = 1e-4
    n_warmup_steps: int = 100
    n_steps: int | None = None
    final_lr_fraction: float = 0.02
    max_kl_weight: float | None = None
    n_steps_kl_warmup: int = 500


#: Batches after which sums are formed: until then every batch is only noted.
_NOTED: Final = 256


class LossSums:
    """Sums of losses over batches, on their device: what is logged waits for it once an epoch."""

    def __init__(self) -> None:
        #: Cells of the batches whose means were taken last.
        self.n_cells = 0
        self._noted: list[tuple[int, dict[str, torch.Tensor]]] = []
        self._sums: dict[str, torch.Tensor] = {}
        self._cells = self._batches = 0

    def add(self, output: LossOutput) -> None:
        """Note the loss of a batch, and its parts where one is a divergence of each cell."""
        parts = {"loss": output.loss}
        if any(part.ndim for part in output.kl_local.values()):
            parts |= {
                "reconstruction_loss": output.reconstruction_loss_sum,
                "kl_local": output.kl_local_sum,
                "kl_global": output.kl_global_sum,
            }
        parts |= output.extra_metrics
        noted = {name: torch.as_tensor(part).detach() for name, part in parts.items()}
        self._noted.append((output.n_obs_minibatch, noted))
        if len(self._noted) == _NOTED:
            self._sum()

    def take(self) -> dict[str, torch.Tensor]:
        """Return the means over cells, with a divergence the bound among them, and start anew."""
        if self._noted:
            self._sum()
        sums, n_cells, n_batches = self._sums, self._cells, self._batches
        self._sums, self._cells, self._batches, self.n_cells = {}, 0, 0, n_cells
        if not sums:
            return {}
        means = {name: total / n_cells for name, total in sums.items()}
        if "kl_local" not in means:
            return means
        means["kl_global"] = sums["kl_global"] / n_batches
        bound = means["reconstruction_loss"] + means["kl_local"] + means["kl_global"] / n_cells
        return {"elbo": bound, **means}

    def _sum(self) -> None:
        """Add what was noted to the sums; parts that are means are weighted by their cells."""
        sizes = [n for n, _ in self._noted]
        for name in self._noted[0][1]:
            values = torch.stack([parts[name] for _, parts in self._noted])
            if values.device.type != "mps":  # has single precision only
                values = values.double()
            if name not in {"reconstruction_loss", "kl_local", "kl_global"}:
                values = values * values.new_tensor(sizes)
            self._sums[name] = self._sums.get(name, 0.0) + values.sum()
        self._cells += sum(sizes)
        self._batches += len(sizes)
        self._noted.clear()


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a compiled function that runs as it is, with a warning, where that fails."""
    calls = [torch.compile(function)]

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
        if not calls:
            return function(*args, **kwargs)
        try:
            return calls[0](*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            calls.clear()
            reason = str(error).strip().partition("\n")[0]
            warn(f"The module could not be compiled and runs as it is: {reason}")
            return function(*args, **kwargs)

    return call


class StagePlan(TrainingPlan):
    """Optimise one module.

    Parameters
    ----------
    module
        A module whose `forward(batch, loss_kwargs=...)` returns a `LossOutput` last.
    config
        Optimiser and schedule.
    compile_module
        Whether the module is compiled, where that works.
    """

    def __init__(
        self, module: BaseModuleClass, config: PlanConfig, *, compile_module: bool = False
    ) -> None:
        super().__init__(
            module,
            optimizer="Custom",
            optimizer_creator=partial(
                torch.optim.AdamW,
                lr=config.lr,
                eps=1e-8,
                weight_decay=config.weight_decay,
                fused=True,
            ),
            n_epochs_kl_warmup=None,
            n_steps_kl_warmup=config.n_steps_kl_warmup,
            max_kl_weight=MAX_KL_WEIGHT if config.max_kl_weight is None else config.max_kl_weight,
        )
        self.config = config
        self.sums = {"train": LossSums(), "validation": LossSums()}
        self._forward = compiled(module.forward) if compile_module else module.forward

    @property
    def kl_weight(self) -> float:
        """Weight of the divergence at this step; a number, for nothing waits for the device."""
        share = self.global_step / self.n_steps_kl_warmup if self.n_steps_kl_warmup else 1.0
        return float(self.max_kl_weight) * min(1.0, share)

    def forward(self, batch: Batch, loss_kwargs: dict[str, Any]) -> LossOutput:
        """Return the loss of a batch."""
        return self._forward(batch, loss_kwargs=loss_kwargs)[-1]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss to be minimised."""
        del batch_idx
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Evaluate a validation batch, with the divergence at its full weight."""
        del batch_idx
        self._step(batch, "validation")

    def on_train_start(self) -> None:
        """Tell the module that steps follow."""
        before = getattr(self.module, "before_steps", None)
        if before is not None:
            before()

    def on_train_batch_end(self, *_: object) -> None:
        """Let the module follow its weights, e.g. by a moving average; log at the last batch."""
        after_step = getattr(self.module, "after_step", None)
        if after_step is not None:
            after_step()
        if self.trainer.is_last_batch or self.trainer.should_stop:
            self._log_means("train")

    def on_validation_epoch_end(self) -> None:
        """Log the means over the validation cells."""
        self._log_means("validation")

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip gradients; Lightning refuses to with a fused optimiser in mixed precision.

        It does so for the sake of scaled gradients, which bfloat16 has no need of.
        """
        if not gradient_clip_val:
            return
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        if gradient_clip_algorithm == "value":
            torch.nn.utils.clip_grad_value_(weights, gradient_clip_val)
        else:
            torch.nn.utils.clip_grad_norm_(weights, gradient_clip_val)

    def configure_optimizers(self) -> dict[str, Any]:
        """Return AdamW and its schedule, stepped with every batch."""
        config = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.LambdaLR(config["optimizer"], self._lr_factor)
        return config | {"lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _step(self, batch: Batch, mode: str) -> torch.Tensor:
        if "kl_weight" in self.loss_kwargs:
            # Validation losses of different epochs must be comparable: no warm-up there.
            full = self.max_kl_weight
            self.loss_kwargs["kl_weight"] = self.kl_weight if mode == "train" else full
        output = self(batch, loss_kwargs=self.loss_kwargs)
        self.sums[mode].add(output)
        return output.loss

    def _log_means(self, mode: str) -> None:
        means, n_cells = self.sums[mode].take(), self.sums[mode].n_cells
        for name, value in means.items():
            key = f"{mode}_{name}" if name == "loss" else f"{name}_{mode}"
            self.log(
                key,
                value,
                on_step=False,
                on_epoch=True,
                prog_bar=name == "loss",
                batch_size=n_cells,
                sync_dist=self.use_sync_dist,
            )

    def _lr_factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / max(self.config.n_warmup_steps, 1))
        if self.config.n_steps is None:
            return warmup
        progress = min(step / max(self.config.n_steps, 1), 1.0)
        low = self.config.final_lr_fraction
        return warmup * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


@checked
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
        error on held-out conditions is computed, and after how many checks without improvement the
        search ends. The fewest keep a lucky early check from winning: with averaged targets the
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
        How often a checkpoint is written, where there is a directory for it.
    balanced
        Whether stage one sees all conditions equally often, and not each cell once an epoch.
    buffer
        Cells of counts on disk that are held in memory and shuffled at a time, in stage one.
    reader
        What reads counts on disk in stage one: "plain", or "annbatch" (shards only).
    compile
        Whether both stages are compiled by `torch.compile`: pays on a GPU and in long trainings.
        Where it fails, a warning says so and the stage runs as it is.
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
    balanced: bool = False
    buffer: int = 16_384
    reader: Literal["plain", "annbatch"] = "plain"
    compile: bool = False
