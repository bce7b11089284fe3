"""Run as two processes by Lightning: train every model together, write what each process has."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch

from tests.contract._screens import SINGLE, fit, make_model, make_screen
from tests.contract.registry import MODELS


def main(folder: Path) -> None:
    """Train, and save weights, history and a few cells of each process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for case in MODELS:
        noises = []
        model = make_model(case, make_screen())
        fit(
            case,
            model,
            devices=2,
            strategy="ddp_find_unused_parameters_true",
            callbacks=[_Listener(noises)],
        )
        rank = int(os.environ["LOCAL_RANK"])
        cells = model.sample([SINGLE], n_samples=5)
        found = {
            "weights": model.module.state_dict(),
            "history": {name: frame[name].tolist() for name, frame in model.history_.items()},
            "cells": torch.from_numpy(cells.X.toarray()),
            "noises": noises,
            "trained": model.is_trained_,
        }
        torch.save(found, folder / f"{case.name}_{rank}.pt")


class _Listener(__import__("lightning.pytorch", fromlist=["Callback"]).Callback):
    def __init__(self, noises: list) -> None:
        self.noises = noises

    def on_train_batch_end(self, *_: object) -> None:
        self.noises.append(torch.random.get_rng_state()[:16].tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
