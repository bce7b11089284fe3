"""A model of one layer that says how it was trained, and cells for it."""

from __future__ import annotations

import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from scvi.module.base import BaseModuleClass, LossOutput
from torch import nn

from scvi_perturb.data.datamodule import ScreenDataModule
from scvi_perturb.train import PlanConfig, Stage, fit_stage

QUIET = {"accelerator": "cpu", "devices": 1, "enable_progress_bar": False}
N_CELLS, N_GENES = 24, 3


class ToyModule(BaseModuleClass):
    """Linear regression with dropout and noise; notes the weights of the divergence."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(N_GENES, 1)
        self.dropout = nn.Dropout(0.2)
        self.noted = {"train": [], "validation": []}
        self.noise, self.n_after_step = 0.1, 0

    def forward(self, tensors, loss_kwargs=None):
        return {}, {}, self.loss(tensors, **(loss_kwargs or {}))

    def loss(self, tensors, kl_weight=1.0):
        self.noted["train" if self.training else "validation"].append(float(kl_weight))
        noise = self.noise * torch.randn_like(tensors["y"])
        error = (self.layer(self.dropout(tensors["x"])) - tensors["y"] + noise).square()[:, 0]
        divergence = self.layer.weight.square().sum().expand(len(error))
        loss = (error + kl_weight * divergence).mean()
        return LossOutput(loss=loss, reconstruction_loss=error, kl_local=divergence)

    def after_step(self):
        self.n_after_step += 1

    def _get_inference_input(self, tensors, **_):
        raise NotImplementedError

    def _get_generative_input(self, tensors, inference_outputs, **_):
        raise NotImplementedError

    def inference(self):
        raise NotImplementedError

    def generative(self):
        raise NotImplementedError

    def sample(self):
        raise NotImplementedError


class ToyModel:
    """What a runner needs of a model."""

    def __init__(self):
        self.module = seeded(ToyModule)
        self.history_ = None
        self.is_trained_ = False

    def to_device(self, device):
        self.module.to(device)


class Cells:
    """Cells by index."""

    def __init__(self):
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(N_CELLS, N_GENES, generator=random)
        self.y = self.x.sum(1, keepdim=True) + 1

    def __len__(self):
        return N_CELLS

    def __getitem__(self, indices):
        index = torch.from_numpy(np.asarray(indices))
        return {"x": self.x[index], "y": self.y[index], "index": index}


class Spy(Callback):
    """Notes what happens; raises in an epoch if asked to."""

    def __init__(self, killed_in=None):
        self.killed_in = killed_in
        self.rates, self.order, self.training, self.weights = [], [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == self.killed_in:
            msg = "killed"
            raise RuntimeError(msg)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.order.append(batch["index"].tolist())
        self.training.append((pl_module.module.training, pl_module.module.dropout.training))

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            loss = float(trainer.callback_metrics["validation_loss"])
            self.weights.append((loss, flat(pl_module.module)))


def seeded(make, seed=0):
    """Call with torch's generator seeded, and put it back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def flat(module):
    """Return all weights as one vector, copied."""
    return torch.cat([p.detach().ravel().clone() for p in module.parameters()])


def stage(model, *, n_validation=8, **changes):
    """Return a stage of three batches an epoch."""
    data = ScreenDataModule(
        Cells(),
        train_idx=np.arange(n_validation, N_CELLS),
        val_idx=np.arange(n_validation),
        batch_size=-(-(N_CELLS - n_validation) // 3),
        seed=0,
    )
    plan = PlanConfig(lr=0.05, n_warmup_steps=0, weight_decay=0.0)
    given = {"name": "first", "plan": plan, "max_epochs": 3, "keep_best": False, **changes}
    return Stage(module=model.module, data=data, **given)


def fit(model, *, spy=None, seed=0, folder=None, every_n_epochs=1, **changes):
    """Train the model for one stage."""
    kwargs = {**QUIET, "callbacks": [spy]} if spy else dict(QUIET)

    def run():
        fit_stage(
            model,
            stage(model, **changes),
            trainer_kwargs=kwargs,
            checkpoint_dir=folder,
            every_n_epochs=every_n_epochs,
        )

    seeded(run, seed)
    return model
