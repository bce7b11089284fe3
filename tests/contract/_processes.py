"""Run outside the tests' own process: trainings that are killed, and trainings by two processes.

Lightning starts the second process by running this module again.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from lightning.pytorch.callbacks import Callback

from scvi_perturb.model.base.latents import encode_cells, encode_in_shares
from scvi_perturb.testing import SINGLE, fit, make_model, make_screen
from tests.contract.registry import MODELS

#: When the killed trainings are killed.
KILLED_IN_EPOCH, KILLED_OF_EPOCHS = 2, 4


class Listener(Callback):
    """Notes the random state after each step."""

    def __init__(self) -> None:
        self.states: list[list[int]] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.states.append(torch.random.get_rng_state()[:16].tolist())


class Killer(Callback):
    """Ends the process at once."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.current_epoch == KILLED_IN_EPOCH:
            os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path) -> None:
    """Leave behind what a killed training leaves."""
    for case in MODELS:
        child = os.fork()
        if child == 0:
            model = make_model(case, make_screen())
            options = {"checkpoint_dir": folder / case.name, "callbacks": [Killer()]}
            fit(case, model, max_epochs=KILLED_OF_EPOCHS, **options)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            msg = f"The training of {case.name} was not killed."
            raise RuntimeError(msg)


def together(folder: Path) -> None:
    """Train in two processes; save weights, history and a few cells of each."""
    for case in MODELS:
        listener = Listener()
        model = make_model(case, make_screen())
        strategy = "ddp_find_unused_parameters_true"
        fit(case, model, devices=2, strategy=strategy, callbacks=[listener])
        cells = model.sample([SINGLE], n_samples=5)
        reader = model._reader(None)
        given = model._representation(), reader.__getitem__, len(reader), torch.device("cpu")
        found = {
            "weights": model.module.state_dict(),
            "history": {name: frame[name].tolist() for name, frame in model.history_.items()},
            "latents": encode_cells(*given)[0],
            "latents_in_shares": encode_in_shares(*given, n_processes=2)[0],
            "cells": torch.from_numpy(cells.X.toarray()),
            "random_states": listener.states,
            "trained": model.is_trained_,
        }
        torch.save(found, folder / f"{case.name}_{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    first_process = "LOCAL_RANK" not in os.environ
    if first_process and hasattr(os, "fork"):
        killed(Path(sys.argv[1], "killed"))
    together(Path(sys.argv[1]))
