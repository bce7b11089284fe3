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


def checkpoint(path="run.ckpt", *, before=None, logged=None):
    """Return a checkpoint of a run that has logged this, after what it was resumed with."""
    callback = Checkpoint(path)
    if before is not None:
        callback.load_state_dict(before)
    trainer = SimpleNamespace(
        logger=SimpleNamespace(history=logged or {}),
        is_global_zero=True,
        current_epoch=3,
        callback_metrics={},
        logged_metrics={},
    )
    callback.on_train_start(trainer, SimpleNamespace())
    return callback


def table(**epochs):
    frame = pd.DataFrame({"loss": list(epochs.values())}, index=[int(k[1:]) for k in epochs])
    return {"loss": frame.rename_axis("epoch")}


def values(history):
    return history["loss"]["loss"].to_dict()


def test_state_of_a_run_survives_a_file():
    state = checkpoint(logged=table(e0=3.0, e1=2.0)).state_dict()
    torch.save(state, "state.pt")
    # As Lightning reads it: nothing but plain types and tensors.
    again = checkpoint(before=torch.load("state.pt", weights_only=True))
    assert values(again.merged_history()) == {0: 3.0, 1: 2.0}


def test_random_numbers_go_on_where_they_stopped():
    before = np.random.get_state()  # noqa: NPY002 - what the callback saves and restores

    def draws():
        return torch.rand(3).tolist(), np.random.rand(3).tolist()  # noqa: NPY002

    def stop():
        state = checkpoint().state_dict()
        return state, draws()

    state, expected = seeded(stop, 5)

    def resume():
        checkpoint(before=state)
        return draws()

    assert seeded(resume, 9) == expected
    np.random.set_state(before)  # noqa: NPY002


def test_history_of_the_resumed_epochs_replaces_what_was_there():
    state = checkpoint(logged=table(e0=3.0, e1=2.0, e2=9.0)).state_dict()
    resumed = checkpoint(before=state, logged=table(e2=1.0, e3=0.5))
    assert values(resumed.merged_history()) == {0: 3.0, 1: 2.0, 2: 1.0, 3: 0.5}
    assert values(resumed.history) == {0: 3.0, 1: 2.0, 2: 9.0}, "not changed"
    assert values(checkpoint(before=state).merged_history()) == {0: 3.0, 1: 2.0, 2: 9.0}


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
