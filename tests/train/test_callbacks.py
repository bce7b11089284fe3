"""Callbacks: the best weights, and a run that is killed and goes on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from scvi_perturb.train import BestWeights, Checkpoint, PlanConfig
from tests.train._toy import Spy, ToyModel, fit, flat, seeded


def look(callback, layer, value, *, epoch=0, sanity=False):
    """Tell a callback that validation has ended with this value."""
    metrics = {} if value is None else {"loss": torch.tensor(value)}
    trainer = SimpleNamespace(callback_metrics=metrics, sanity_checking=sanity, current_epoch=epoch)
    callback.on_validation_end(trainer, SimpleNamespace(module=layer))


def restore(callback, layer):
    callback.on_train_end(SimpleNamespace(), SimpleNamespace(module=layer))


def set_to(layer, value):
    nn.init.constant_(layer.weight, value)


def test_best_weights_are_kept_and_restored():
    layer, callback = nn.Linear(2, 1), BestWeights("loss")
    for epoch, value in enumerate([3.0, 1.0, 2.0, 1.0, float("nan")]):
        set_to(layer, epoch)
        look(callback, layer, value, epoch=epoch)
    assert (callback.best, callback.best_epoch) == (1.0, 1)
    assert layer.weight.tolist() == [[4.0, 4.0]], "not before the end"
    restore(callback, layer)
    assert layer.weight.tolist() == [[1.0, 1.0]], "the first of the best, as a copy"


def test_nothing_is_restored_that_was_not_measured():
    layer, callback = nn.Linear(2, 1), BestWeights("loss")
    look(callback, layer, None)
    look(callback, layer, float("nan"))
    look(callback, layer, 0.1, sanity=True)
    set_to(layer, 7)
    restore(callback, layer)
    assert layer.weight.tolist() == [[7.0, 7.0]]
    assert callback.best == float("inf")


def test_best_weights_survive_a_checkpoint():
    layer, callback = nn.Linear(2, 1), BestWeights("loss")
    set_to(layer, 1)
    look(callback, layer, 0.5, epoch=3)
    other = BestWeights("loss")
    other.load_state_dict(callback.state_dict())
    assert (other.best, other.best_epoch) == (0.5, 3)
    set_to(layer, 2)
    look(other, layer, 0.6, epoch=4)
    restore(other, layer)
    assert layer.weight.tolist() == [[1.0, 1.0]]


def test_best_weights_of_a_training_are_those_of_its_lowest_validation_loss():
    spy, model = Spy(), ToyModel()
    # So large a rate that the loss goes up and down.
    fit(model, spy=spy, plan=PlanConfig(lr=1.5, n_warmup_steps=0), max_epochs=8, keep_best=True)
    losses = [loss for loss, _ in spy.weights]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1
    assert torch.equal(flat(model.module), spy.weights[best][1])


def test_checkpoint_holds_history_and_random_state(tmp_path):
    callback = Checkpoint(tmp_path / "run.ckpt")
    callback.history = {"loss": pd.DataFrame({"loss": [3.0, 2.0]})}
    state = seeded(callback.state_dict, 5)
    other = Checkpoint(tmp_path / "run.ckpt")
    other.load_state_dict(state)
    assert other.merged_history()["loss"]["loss"].tolist() == [3.0, 2.0]

    def draws():
        other.on_train_start(SimpleNamespace(logger=SimpleNamespace()), SimpleNamespace())
        return torch.rand(3)

    before = np.random.get_state()  # noqa: NPY002 - what the callback restores
    assert torch.equal(seeded(draws, 9), seeded(lambda: torch.rand(3), 5))
    np.random.set_state(before)  # noqa: NPY002


def test_history_of_the_resumed_epochs_replaces_what_was_there():
    callback = Checkpoint("run.ckpt")
    callback.history = {"loss": pd.DataFrame({"loss": [3.0, 2.0, 9.0]}), "gone": pd.DataFrame()}
    logged = {"loss": pd.DataFrame({"loss": [1.0, 0.5]}, index=[2, 3])}
    callback._trainer = SimpleNamespace(logger=SimpleNamespace(history=logged))
    merged = callback.merged_history()
    assert merged["loss"]["loss"].to_dict() == {0: 3.0, 1: 2.0, 2: 1.0, 3: 0.5}
    assert set(merged) == {"loss", "gone"}
    assert callback.history["loss"]["loss"].tolist() == [3.0, 2.0, 9.0], "not changed"


OPTIONS = {"max_epochs": 6, "keep_best": True, "patience": 50}


def test_killed_run_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = fit(ToyModel(), folder=tmp_path / "whole", **OPTIONS)
    folder = tmp_path / "killed"
    with pytest.raises(RuntimeError, match="killed"):
        fit(ToyModel(), spy=Spy(killed_in=3), folder=folder, **OPTIONS)
    assert sorted(path.name for path in folder.iterdir()) == ["first.ckpt"]
    spy = Spy()
    resumed = fit(ToyModel(), spy=spy, folder=folder, seed=11, **OPTIONS)
    assert len(spy.order) == 3 * 3, "three of six epochs"
    assert torch.equal(flat(resumed.module), flat(whole.module))
    assert resumed.history_.keys() == whole.history_.keys()
    for name, frame in whole.history_.items():
        pd.testing.assert_frame_equal(resumed.history_[name], frame, obj=name)
    assert sorted(path.name for path in folder.iterdir()) == ["first.pt"]


def test_checkpoint_is_written_as_often_as_asked(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        fit(ToyModel(), spy=Spy(killed_in=5), folder=tmp_path, every_n_epochs=2, **OPTIONS)
    saved = torch.load(tmp_path / "first.ckpt", weights_only=False)
    assert saved["epoch"] == 3
    spy = Spy()
    fit(ToyModel(), spy=spy, folder=tmp_path, every_n_epochs=2, **OPTIONS)
    assert len(spy.order) == 3 * 2
