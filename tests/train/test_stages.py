"""One stage: how it runs, when it stops, where its history goes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvi_perturb.train import PlanConfig, fit_stage
from tests.train._toy import N_CELLS, QUIET, Spy, ToyModel, fit, flat, stage


@pytest.mark.filterwarnings("error:.*LeafSpec.* is deprecated:FutureWarning")
def test_stage_trains_every_cell_once_an_epoch_in_another_order():
    spy = Spy()
    fit(ToyModel(), spy=spy, max_epochs=2)
    epochs = [np.concatenate(spy.order[i : i + 3]) for i in (0, 3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(8, N_CELLS))
    assert not np.array_equal(*epochs)


def test_second_training_is_in_training_mode():
    # scvi-tools leaves the module in evaluation mode after each.
    model = ToyModel()
    for _ in range(2):
        spy = Spy()
        fit(model, spy=spy, max_epochs=2)
        assert spy.training == [(True, True)] * 6
        assert not model.module.training
        assert not model.is_trained_  # one stage is not a trained model: the model says when


def test_history_is_kept_under_the_name_of_the_stage():
    model = fit(fit(ToyModel(), max_epochs=3), name="second", max_epochs=2)
    for name, n in (("first", 3), ("second", 2)):
        for part in ("train_loss", "validation_loss", "kl_local_train"):
            frame = model.history_[f"{name}_{part}"]
            assert frame.columns.tolist() == [f"{name}_{part}"]
            assert frame.index.tolist() == list(range(n))
            assert frame.dtypes.tolist() == [np.float64]
    assert {key.split("_")[0] for key in model.history_} == {"first", "second"}


def test_history_of_a_further_training_is_appended():
    model = fit(ToyModel(), max_epochs=3)
    first = model.history_["first_train_loss"].copy()
    fit(model, max_epochs=2)
    both = model.history_["first_train_loss"]
    assert both.index.tolist() == list(range(5))
    np.testing.assert_array_equal(both.to_numpy()[:3], first.to_numpy())
    assert both.index.name == first.index.name


def test_stage_without_validation_runs_to_its_end():
    model = fit(ToyModel(), n_validation=0, max_epochs=4, keep_best=True, patience=1)
    assert len(model.history_["first_train_loss"]) == 4
    assert "first_validation_loss" not in model.history_


def test_stage_stops_when_validation_no_longer_improves():
    still = PlanConfig(lr=0.0, weight_decay=0.0)
    spy, model = Spy(), ToyModel()
    model.module.noise = 0.0
    fit(model, spy=spy, plan=still, max_epochs=20, patience=3, keep_best=True)
    assert len(model.history_["first_validation_loss"]) == 4


@pytest.mark.parametrize("keep_best", [True, False])
def test_last_weights_are_kept_unless_the_best_are_asked_for(keep_best):
    spy, model = Spy(), ToyModel()
    plan = PlanConfig(lr=1.5, n_warmup_steps=0)
    fit(model, spy=spy, plan=plan, max_epochs=8, keep_best=keep_best)
    last = torch.equal(flat(model.module), spy.weights[-1][1])
    assert last != keep_best


def test_gradients_are_clipped():
    norms = []

    class Norms(Spy):
        def on_train_batch_end(self, trainer, pl_module, *_):
            grads = [p.grad.ravel() for p in pl_module.module.parameters()]
            norms.append(float(torch.cat(grads).norm()))

    fit(ToyModel(), spy=Norms(), gradient_clip=1e-3, max_epochs=1)
    fit(ToyModel(), spy=Norms(), max_epochs=1)
    assert norms[:3] == pytest.approx([1e-3] * 3, rel=1e-2)
    assert min(norms[3:]) > 0.1


def test_finished_stage_is_loaded_and_not_trained_again(tmp_path):
    first = fit(ToyModel(), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["first.pt"]
    spy, second = Spy(), ToyModel()
    fit(second, spy=spy, folder=tmp_path)
    assert spy.order == []
    assert torch.equal(flat(second.module), flat(first.module))
    assert second.history_.keys() == first.history_.keys()
    fit(second, spy=spy, folder=tmp_path, name="second")
    assert spy.order != [], "another stage is not finished by this"


def test_arguments_of_the_trainer_are_left_as_they_are():
    given = {**QUIET, "callbacks": [Spy()]}
    before = {**given, "callbacks": list(given["callbacks"])}
    model = ToyModel()
    with torch.random.fork_rng():
        fit_stage(model, stage(model, patience=2, keep_best=True), trainer_kwargs=given)
    assert given == before
