"""A run that is killed goes on where it stopped, and ends as if it had not been killed."""

from __future__ import annotations

from contextlib import nullcontext
from copy import copy
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from scvi_perturb import NotTrainedError
from scvi_perturb.testing import SINGLE, dense, fit, make_model
from scvi_perturb.train import PlanConfig, TrainConfig
from tests.contract.registry import MODELS, TRAINED, make_searchable

EPOCHS = 4


#: What the tests here are run on.
CASES = TRAINED


class Kill(Callback):
    """End the run in a stage, at the start or the end of an epoch."""

    def __init__(self, stage, epoch, *, at_end=False):
        self.stage, self.epoch, self.at_end = stage, epoch, at_end
        self.now = -1

    def on_train_start(self, trainer, pl_module):
        self.now += 1

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._kill(trainer, here=not self.at_end)

    def on_validation_end(self, trainer, pl_module):
        self._kill(trainer, here=self.at_end)

    def _kill(self, trainer, *, here):
        if here and (self.now, trainer.current_epoch) == (self.stage, self.epoch):
            msg = "killed"
            raise KilledError(msg)


class KilledError(RuntimeError):
    """As far as the files go, the end of the process."""


KILLS = {
    "before the first checkpoint": Kill(0, 0),
    "in the first stage": Kill(0, 2),
    "before the end of the first stage": Kill(0, EPOCHS - 1, at_end=True),
    "between the stages": Kill(1, 0),
    "before the first checkpoint of the second stage": Kill(1, 0, at_end=True),
    "in the second stage": Kill(1, 3),
}


def train(case, simulated, **options):
    model = make_model(case, simulated.copy())
    return fit(case, model, max_epochs=EPOCHS, **options)


def assert_same(model, whole):
    state = whole.module.state_dict()
    for key, value in model.module.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=1e-6)
    assert model.history_.keys() == whole.history_.keys()
    for key, losses in whole.history_.items():
        pd.testing.assert_frame_equal(model.history_[key], losses, atol=1e-6, check_dtype=False)
    cells = [m.sample([SINGLE], n_samples=5) for m in (model, whole)]
    np.testing.assert_array_equal(*(dense(c.X) for c in cells))


@pytest.fixture(scope="module")
def whole(case, simulated):
    """A model trained without interruption."""
    return train(case, simulated)


@pytest.mark.parametrize("when", KILLS)
def test_killed_run_goes_on(case, simulated, whole, when):
    kill = copy(KILLS[when])
    if kill.stage >= len(case.stages):
        pytest.skip("no such stage")
    with pytest.raises(KilledError):
        train(case, simulated, checkpoint_dir="run", callbacks=[kill])
    assert_same(train(case, simulated, checkpoint_dir=Path("run")), whole)


def test_killed_run_on_disk_goes_on(simulated, tmp_path):
    case = next(one for one in MODELS if one.name == "PerturbDiffusion")
    simulated.write_h5ad(tmp_path / "screen.h5ad")
    screen = anndata.read_h5ad(tmp_path / "screen.h5ad", backed="r")
    config = TrainConfig(buffer=64, balanced=True)
    options = {"max_epochs": 3, "n_steps": 2, "batch_size": 16, "config": config}
    kill = copy(KILLS["in the first stage"])
    runs = []
    for given in ({}, {"callbacks": [kill], "checkpoint_dir": "run"}, {"checkpoint_dir": "run"}):
        runs.append(make_model(case, screen))
        with pytest.raises(KilledError) if "callbacks" in given else nullcontext():
            runs[-1].train(seed=0, enable_progress_bar=False, **options, **given)
    assert_same(runs[2], runs[0])


@pytest.mark.parametrize("when", ["in the first stage", "in the second stage"])
def test_model_in_memory_goes_on_too(case, simulated, whole, when):
    kill = copy(KILLS[when])
    if kill.stage >= len(case.stages):
        pytest.skip("no such stage")
    model = make_model(case, simulated.copy())
    with pytest.raises(KilledError):
        fit(case, model, max_epochs=EPOCHS, checkpoint_dir="run", callbacks=[kill])
    with pytest.raises(NotTrainedError):
        model.sample([SINGLE])
    fit(case, model, max_epochs=EPOCHS, checkpoint_dir="run")
    assert_same(model, whole)


def test_checkpoints_do_not_change_the_result(case, simulated, whole):
    assert_same(train(case, simulated, checkpoint_dir="run"), whole)
    stages = [f"{s}.pt" for s in sorted(case.stages)]
    assert sorted(p.name for p in Path("run").iterdir()) == sorted([*stages, "run.json"])


def test_finished_run_is_only_read(case, simulated, whole):
    train(case, simulated, checkpoint_dir="run")
    written = {p.name: p.read_bytes() for p in Path("run").iterdir()}
    no_epoch = Kill(0, 0)
    assert_same(train(case, simulated, checkpoint_dir="run", callbacks=[no_epoch]), whole)
    assert no_epoch.now == -1, "nothing was trained"
    assert {p.name: p.read_bytes() for p in Path("run").iterdir()} == written


def test_killed_run_stops_early_where_a_whole_one_does(case, simulated):
    # A learning rate that makes the loss go up and down.
    config = TrainConfig(representation=PlanConfig(lr=0.1, n_warmup_steps=0), patience=3)
    options = {"config": config, "max_epochs": 40}

    def run(**more):
        return fit(case, make_model(case, simulated.copy()), **options, **more)

    whole = run()
    losses = whole.history_[f"{case.selected[0]}_validation_loss"].to_numpy().ravel()
    assert len(losses) < 40
    assert len(losses) - 2 > losses.argmin(), "killed while it waits for a better loss"
    with pytest.raises(KilledError):
        run(checkpoint_dir="run", callbacks=[Kill(0, len(losses) - 1)])
    assert_same(run(checkpoint_dir="run"), whole)


def test_checkpoints_can_be_rarer_than_epochs(case, simulated, whole):
    config = TrainConfig(checkpoint_every_n_epochs=2)
    with pytest.raises(KilledError):
        train(case, simulated, checkpoint_dir="run", config=config, callbacks=[Kill(0, 3)])
    assert_same(train(case, simulated, checkpoint_dir="run", config=config), whole)


@pytest.mark.parametrize(
    "case", [c for c in TRAINED if c.searched is not None], ids=lambda c: c.name, indirect=True
)
def test_length_that_was_searched_for_is_the_same_after_a_kill(case):
    config = TrainConfig(max_generator_steps=20, check_every_n_steps=5)
    options = {"config": config, **case.searched}
    searchable = make_searchable()
    whole = train(case, searchable, **options)
    last = len(case.stages)  # the search is a training of its own, before the last stage
    with pytest.raises(KilledError):
        train(case, searchable, checkpoint_dir="run", callbacks=[Kill(last, 1)], **options)
    assert_same(train(case, searchable, checkpoint_dir="run", **options), whole)
