"""The training plan of every stage: AdamW, a schedule in steps, metrics that survive DDP."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch
from scvi.train import TrainingPlan

from scvi_perturb._compat import log_loss_components

if TYPE_CHECKING:
    from scvi.module.base import BaseModuleClass, LossOutput

    from scvi_perturb._typing import Batch

__all__ = ["PlanConfig", "StagePlan"]

#: Of models whose prior is never drawn from.
MAX_KL_WEIGHT: Final = 0.1


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


class StagePlan(TrainingPlan):
    """Optimise one module.

    Parameters
    ----------
    module
        A module whose `forward(batch, loss_kwargs=...)` returns a `LossOutput` last.
    config
        Optimiser and schedule.
    """

    def __init__(self, module: BaseModuleClass, config: PlanConfig) -> None:
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

    def forward(self, batch: Batch, loss_kwargs: dict[str, Any]) -> LossOutput:
        """Return the loss of a batch."""
        return self.module(batch, loss_kwargs=loss_kwargs)[-1]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Return the loss to be minimised and log its parts, averaged over the epoch."""
        del batch_idx
        return self._step(batch, "train")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a validation batch, with the divergence at its full weight."""
        del batch_idx
        self._step(batch, "validation")

    def on_train_batch_end(self, *_: object) -> None:
        """Let the module follow its weights, e.g. by a moving average."""
        after_step = getattr(self.module, "after_step", None)
        if after_step is not None:
            after_step()

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
        self.log(
            f"{mode}_loss",
            output.loss.detach(),
            on_step=False,
            on_epoch=True,
            prog_bar=True,
            batch_size=output.n_obs_minibatch,
            sync_dist=self.use_sync_dist,
        )
        metrics = self.train_metrics if mode == "train" else self.val_metrics
        log_loss_components(self, output, metrics, mode)
        return output.loss

    def _lr_factor(self, step: int) -> float:
        warmup = min(1.0, (step + 1) / max(self.config.n_warmup_steps, 1))
        if self.config.n_steps is None:
            return warmup
        progress = min(step / max(self.config.n_steps, 1), 1.0)
        low = self.config.final_lr_fraction
        return warmup * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
