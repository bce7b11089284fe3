"""The plan of every stage: optimiser, schedule, weight of the divergence, what is logged."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scvi_perturb.train import PlanConfig, StagePlan, TrainConfig
from tests.train._toy import Cells, Spy, ToyModel, ToyModule, fit


def plan(**config):
    return StagePlan(ToyModule(), PlanConfig(**config))


def rates(**config):
    """Return the learning rate of every step of a training, relative to the first asked for."""
    made = PlanConfig(lr=0.5, weight_decay=0.0, **config)
    spy = Spy()
    fit(ToyModel(), spy=spy, plan=made, max_epochs=5)
    return np.array(spy.rates) / 0.5


def test_optimizer_is_adamw_with_a_small_eps():
    made = plan(lr=0.01, weight_decay=0.3).configure_optimizers()
    optimizer = made["optimizer"]
    assert isinstance(optimizer, torch.optim.AdamW)
    (group,) = optimizer.param_groups
    # The schedule has set the rate of the first step already.
    assert (group["initial_lr"], group["weight_decay"], group["eps"]) == (0.01, 0.3, 1e-8)
    assert len(group["params"]) == 2
    assert made["lr_scheduler"]["interval"] == "step"


def test_optimizer_leaves_frozen_weights_out():
    module = ToyModule()
    module.layer.bias.requires_grad_(requires_grad=False)
    made = StagePlan(module, PlanConfig()).configure_optimizers()["optimizer"]
    assert [p.shape for p in made.param_groups[0]["params"]] == [module.layer.weight.shape]


def test_rate_warms_up_in_steps_then_falls_along_a_cosine():
    found = rates(n_warmup_steps=4, n_steps=12, final_lr_fraction=0.1)
    step = np.arange(15)
    cosine = 0.1 + 0.9 * 0.5 * (1 + np.cos(np.pi * np.minimum(step / 12, 1)))
    np.testing.assert_allclose(found, np.minimum((step + 1) / 4, 1) * cosine)
    assert (np.diff(found[:4]) > 0).all()
    assert (np.diff(found[4:13]) < 0).all()
    np.testing.assert_allclose(found[12:], 0.1)


def test_rate_stays_after_the_warm_up_when_no_length_is_given():
    np.testing.assert_allclose(rates(n_warmup_steps=2), [0.5] + 14 * [1.0])
    np.testing.assert_allclose(rates(n_warmup_steps=0), 15 * [1.0])


@pytest.mark.parametrize("n_steps", [0, 1])
def test_schedule_of_no_length_has_a_rate(n_steps):
    factor = plan(n_steps=n_steps, n_warmup_steps=0)._lr_factor
    assert factor(0) == pytest.approx(1)
    assert factor(5) == pytest.approx(0.02)
    assert all(math.isfinite(factor(i)) for i in range(4))


def test_divergence_warms_up_in_steps_and_validates_at_its_full_weight():
    model = ToyModel()
    config = PlanConfig(max_kl_weight=0.4, n_steps_kl_warmup=8)
    fit(model, plan=config, max_epochs=4)
    train, validation = model.module.noted["train"], model.module.noted["validation"]
    assert train == pytest.approx([0.4 * min(i / 8, 1) for i in range(12)])
    assert len(validation) >= 4
    assert validation == pytest.approx([0.4] * len(validation))


def test_no_warm_up_means_the_full_weight_at_once():
    model = fit(ToyModel(), plan=PlanConfig(max_kl_weight=0.4, n_steps_kl_warmup=0), max_epochs=1)
    assert model.module.noted["train"] == pytest.approx([0.4] * 3)


def test_module_follows_every_step():
    assert fit(ToyModel(), max_epochs=4).module.n_after_step == 12


def test_losses_are_means_over_cells():
    model = ToyModel()
    # Nothing moves and nothing is random: every batch has the loss of the cells in it.
    model.module.dropout.p = 0.0
    frozen = PlanConfig(lr=0.0, weight_decay=0.0, max_kl_weight=0.0)
    fit(model, plan=frozen, max_epochs=1)
    cells = Cells()
    with torch.no_grad():
        error = (model.module.layer(cells.x) - cells.y).square()[:, 0].numpy()
    for part, chosen in (("validation", error[:8]), ("train", error[8:])):
        logged = model.history_[f"first_{part}_loss"].to_numpy().item()
        # The toy's noise moves the squared error e of a cell by about 0.2 e^0.5.
        mean = float(chosen.mean())
        assert logged == pytest.approx(mean + 0.01, abs=0.8 * (mean / 8) ** 0.5)
        parts = model.history_[f"first_reconstruction_loss_{part}"].to_numpy().item()
        assert parts == pytest.approx(logged, rel=1e-4)


def test_configurations_are_values():
    assert PlanConfig() == PlanConfig()
    assert replace(PlanConfig(), lr=1.0) != PlanConfig()
    assert TrainConfig().generator.weight_decay > TrainConfig().representation.weight_decay
    with pytest.raises(AttributeError):
        PlanConfig().lr = 1.0


def test_numbers_of_the_pages_are_the_defaults():
    config = TrainConfig()
    assert config.generator_steps == 1000
    assert (config.min_generator_steps, config.max_generator_steps) == (500, 3000)
    assert (config.check_every_n_steps, config.check_patience) == (100, 4)
    assert (config.representation_steps, config.patience) == (1500, 15)
