"""The curves of training."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvi_perturb import NotTrainedError, PerturbDiffusion
from scvi_perturb.pl import training_history


def trained(**losses: np.ndarray) -> PerturbDiffusion:
    """Return a model of which the history alone is read."""
    made = object.__new__(PerturbDiffusion)
    made.history_ = {
        name: pd.DataFrame({name: values}).rename_axis("epoch") for name, values in losses.items()
    }
    return made


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def model() -> PerturbDiffusion:
    falling = 100 + 1000 * np.exp(-np.arange(60.0))
    return trained(
        representation_train_loss=falling,
        representation_validation_loss=falling + 1,
        generator_train_loss=np.linspace(1, 0.5, 20),
    )


def test_every_stage_has_its_losses(model):
    one, two = training_history(model)
    assert [line.get_label() for line in one.lines] == ["train", "validation"]
    assert [line.get_label() for line in two.lines] == ["train"]
    np.testing.assert_allclose(
        one.lines[0].get_ydata(), model.history_["representation_train_loss"].iloc[:, 0]
    )


def test_the_first_epochs_do_not_flatten_the_rest(model):
    one, two = training_history(model)
    assert one.get_ylim()[1] < 300
    assert two.get_ylim()[1] >= 1


def test_a_stage_alone_is_drawn():
    model = trained(generator_train_loss=np.array([1.0]))
    (ax,) = training_history(model)
    assert "two" in ax.get_title()


def test_without_training_there_is_nothing_to_draw():
    with pytest.raises(NotTrainedError, match=r"call `.train\(\)`"):
        training_history(trained())


def test_axes_are_one_a_stage(model):
    _, ax = plt.subplots()
    with pytest.raises(ValueError, match="1 axes for 2 stages"):
        training_history(model, axes=[ax])
