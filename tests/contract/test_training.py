"""Training: what is logged, how it is optimised, what it may not change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from scipy import sparse

from scvi_perturb import SchemaError
from scvi_perturb.data import split
from scvi_perturb.testing import (
    fit,
    make_model,
    make_split,
    moved_split,
)
from scvi_perturb.train import PlanConfig, TrainConfig
from tests.contract.registry import APART, make_searchable

#: What the tests here are run on.
CASES = APART


class Spy(Callback):
    """Notes how each stage is trained."""

    def __init__(self):
        self.eps, self.in_training, self.dropout, self.kl = [], [], [], []
        self.weights, self.losses, self.sizes = [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.eps += [group["eps"] for o in trainer.optimizers for group in o.param_groups]
        self.in_training.append(pl_module.module.training)
        drops = [m for m in pl_module.module.modules() if isinstance(m, torch.nn.Dropout)]
        self.dropout += [m.training for m in drops if m.p > 0]
        self.kl.append((pl_module.n_epochs_kl_warmup, pl_module.kl_weight))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.sizes.append(len(next(iter(batch.values()))))
        self.losses.append(float(outputs["loss"]))

    def on_validation_end(self, trainer, pl_module):
        state = {k: v.clone() for k, v in pl_module.module.state_dict().items()}
        self.weights.append((float(trainer.callback_metrics["validation_loss"]), state))


def weights(model):
    return torch.cat([p.detach().ravel().double() for p in model.module.parameters()])


def test_history_has_training_and_validation_loss_of_each_stage(case, trained):
    for stage in case.stages:
        for part in ("train", "validation"):
            losses = trained.history_[f"{stage}_{part}_loss"]
            assert np.isfinite(losses.to_numpy()).all()
            assert losses.index.tolist() == list(range(len(losses)))
            assert losses.columns.tolist() == [f"{stage}_{part}_loss"]
    first = trained.history_[f"{case.stages[0]}_validation_loss"]
    assert len(first) == case.train["max_epochs"], "validation runs in every epoch"


def test_a_trained_model_evaluates(trained):
    assert trained.is_trained_
    assert not trained.module.training


def test_optimizer_does_not_slow_down_small_gradients(case, untrained):
    spy = Spy()
    fit(case, untrained, callbacks=[spy])
    assert spy.eps
    assert max(spy.eps) <= 1e-7


def test_second_training_and_one_after_loading_have_dropout_active(case, untrained):
    fit(case, untrained, max_epochs=1)
    untrained.save("model")
    for model in (untrained, case.model.load("model", untrained.adata)):
        spy = Spy()
        fit(case, model, max_epochs=1, callbacks=[spy])
        assert spy.in_training
        assert all(spy.in_training)
        assert spy.dropout, "no stage of the model has dropout"
        assert all(spy.dropout)


def test_second_training_goes_on_and_its_history_is_appended(case, untrained):
    fit(case, untrained)
    before, epochs = weights(untrained), len(untrained.history_[f"{case.stages[0]}_train_loss"])
    fit(case, untrained, max_epochs=1)
    losses = untrained.history_[f"{case.stages[0]}_train_loss"]
    assert losses.index.tolist() == list(range(epochs + 1))
    assert not torch.equal(before, weights(untrained))


def test_divergence_warms_up_in_steps(case, untrained):
    # In epochs it would take 400: a screen of a million cells is trained for eight.
    spy = Spy()
    config = TrainConfig(representation=PlanConfig(n_steps_kl_warmup=4, max_kl_weight=0.5))
    fit(case, untrained, config=config, callbacks=[spy])
    assert {epochs for epochs, _ in spy.kl} == {None}
    first_stage = spy.kl[:6]
    assert [weight for _, weight in first_stage] == pytest.approx([0, 0.125, 0.25, 0.375, 0.5, 0.5])


def test_last_batch_may_have_one_cell(case, untrained):
    spy = Spy()
    n_train = untrained.adata.n_obs - untrained.adata.n_obs // 10
    fit(case, untrained, max_epochs=1, batch_size=n_train - 1, callbacks=[spy])
    assert spy.sizes[:2] == [n_train - 1, 1]
    assert np.isfinite(spy.losses).all()


def test_weights_depend_on_the_seed_alone(case, screen):
    def train(seed):
        return weights(fit(case, make_model(case, screen, seed=seed), seed=seed))

    torch.manual_seed(1)
    first = train(0)
    torch.manual_seed(2)
    assert torch.equal(train(0), first)
    assert not torch.equal(train(1), first)


def test_random_cells_validate_and_their_choice_is_seeded(case, screen):
    # scvi-tools does not seed its own split unless `scvi.settings.seed` is set.
    made = [fit(case, make_model(case, screen), max_epochs=1, seed=s) for s in (0, 0, 1)]
    same, again, other = (model.validation_indices for model in made)
    assert len(same) == screen.n_obs // 10
    np.testing.assert_array_equal(same, again)
    assert not np.array_equal(same, other)


def test_split_says_which_cells_train(case, trained, simulated):
    made = make_split(simulated)
    np.testing.assert_array_equal(trained.train_indices, made.train)
    np.testing.assert_array_equal(trained.validation_indices, made.validation)
    np.testing.assert_array_equal(trained.test_indices, made.test)
    assert trained.trained_on_["data_hash"] == made.data_hash
    assert trained.trained_on_["n_cells"] == len(made.train)


@pytest.mark.parametrize("kind", ["cells", "unseen_perturbation", "unseen_combination"])
def test_held_out_cells_do_not_reach_the_weights(case, simulated, kind):
    made = split(simulated, kind, seed=1)
    spoilt = simulated.copy()
    counts = spoilt.X.toarray()
    counts[made.test] = np.random.default_rng(0).poisson(20, counts[made.test].shape)
    spoilt.X = sparse.csr_matrix(counts)
    models = [make_model(case, adata) for adata in (simulated.copy(), spoilt)]
    found = [weights(fit(case, model, split=moved_split(made, model.adata))) for model in models]
    assert torch.equal(*found)


def test_split_of_other_data_is_refused(case, untrained, simulated):
    made = make_split(simulated[:-1].copy())
    with pytest.raises(SchemaError, match=f"split is of {simulated.n_obs - 1} cells"):
        fit(case, untrained, split=made)


def test_split_needs_no_validation_cells(case, untrained, simulated):
    made = split(simulated, "cells", seed=0)
    parts = {"train": np.union1d(made.train, made.validation).tolist(), "validation": []}
    fit(case, untrained, split=type(made).from_dict({**made.to_dict(), **parts}))
    assert len(untrained.validation_indices) == 0
    assert len(untrained.history_[f"{case.stages[0]}_train_loss"]) == case.train["max_epochs"]
    assert not any("validation" in name for name in untrained.history_)


def test_early_stopping_can_keep_the_last_weights(case, untrained):
    plan = PlanConfig(lr=0.1, n_warmup_steps=0)
    config = TrainConfig(representation=plan, patience=2, keep_best=False)
    spy = Spy()
    fit(case, untrained, max_epochs=40, config=config, callbacks=[spy])
    stage = case.selected[0]
    losses = untrained.history_[f"{stage}_validation_loss"].to_numpy().ravel()
    assert len(losses) == losses.argmin() + 1 + 2 < 40
    last = spy.weights[len(losses) - 1][1]
    kept = getattr(untrained.module, stage).state_dict()
    assert all(torch.equal(kept[key], values) for key, values in last.items())


@pytest.mark.parametrize(("kept", "missing"), [("control", "treated"), ("treated", "control")])
def test_training_cells_must_hold_controls_and_treated(case, untrained, simulated, kept, missing):
    made = split(simulated, "cells", seed=0)
    is_control = (simulated.obs["perturbation"] == "control").to_numpy()
    keep = is_control if kept == "control" else ~is_control
    parts = {"train": np.flatnonzero(keep), "validation": [], "test": np.flatnonzero(~keep)}
    one_sided = type(made).from_dict({**made.to_dict(), **parts})
    with pytest.raises(SchemaError, match=f"no {missing} cell"):
        fit(case, untrained, split=one_sided)


def test_early_stopping_restores_the_best_weights(case, untrained):
    # A learning rate that makes the loss go up and down.
    plan = PlanConfig(lr=0.1, n_warmup_steps=0)
    spy = Spy()
    config = TrainConfig(representation=plan, patience=2)
    fit(case, untrained, max_epochs=40, config=config, callbacks=[spy])
    stage = case.selected[0]
    losses = untrained.history_[f"{stage}_validation_loss"].to_numpy().ravel()
    best = int(losses.argmin())
    assert len(losses) == best + 1 + 2 < 40, "stops when the patience is over"
    restored = getattr(untrained.module, stage).state_dict()
    loss, state = spy.weights[best]
    assert loss == pytest.approx(losses.min(), rel=1e-6)
    assert all(torch.equal(restored[k], v) for k, v in state.items())


def test_length_of_a_stage_is_chosen_on_held_out_conditions(case):
    if case.searched is None:
        pytest.skip("no stage of this model has a length to choose")
    config = TrainConfig(max_generator_steps=20, check_every_n_steps=5)
    screens = [make_searchable() for _ in range(2)]
    made = [fit(case, make_model(case, s), config=config, **case.searched) for s in screens]
    assert torch.equal(weights(made[0]), weights(made[1]))
    history = made[0].history_
    looks = next(losses for name, losses in history.items() if "held_out" in name)
    assert looks.index.tolist() == [5, 10, 15, 20]
    assert 0 < len(history[f"{case.stages[-1]}_train_loss"]) <= 20
    assert {name.split("_")[0] for name in history} == set(case.stages)


def test_nothing_is_written_and_no_setting_changed(case, untrained):
    import torch._dynamo

    fit(case, untrained, max_epochs=1)
    assert list(Path.cwd().iterdir()) == []
    assert torch._dynamo.config.suppress_errors is False
    assert torch.get_default_dtype() == torch.float32
