"""Effects with intervals, support, and the losses of one stage."""

from __future__ import annotations

import anndata
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from scvi_perturb import NotTrainedError, PerturbDiffusion, SchemaError
from scvi_perturb.pl import condition_support, effect_intervals, training_curves

LFC = np.array([[0.1, -2.0, 0.5, 0.0], [1.0, 0.0, 0.0, 0.0]])
GENES = ["a", "b", "c", "d"]


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def predicted() -> anndata.AnnData:
    layers = {"lfc": LFC, "lower": LFC - 0.2, "upper": LFC + 0.4}
    return anndata.AnnData(LFC + 1, var=pd.DataFrame(index=GENES), layers=layers)


def test_genes_stand_by_the_size_of_their_change_with_the_interval(predicted):
    ax = effect_intervals(predicted, n_genes=3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["b", "c", "a"]
    (bars,) = ax.containers
    np.testing.assert_allclose(bars.lines[0].get_xdata(), [-2.0, 0.5, 0.1])
    ends = [segment[:, 0] for segment in bars.lines[2][0].get_segments()]
    np.testing.assert_allclose(ends, [[-2.2, -1.6], [0.3, 0.9], [-0.1, 0.5]])


def test_what_was_measured_brings_its_own_genes(predicted):
    measured = np.array([0.0, -1.0, 0.0, 3.0])
    halves = np.stack([measured - 0.1, measured + 0.1])
    ax = effect_intervals(predicted, others={"measured": measured, "halves": halves}, n_genes=2)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["d", "b"]
    drawn = [line.get_xdata() for line in ax.lines if line.get_marker() == "|"]
    np.testing.assert_allclose(drawn, [[2.9, -1.1], [3.1, -0.9]])
    assert {"measured", "halves"} <= {text.get_text() for text in ax.get_legend().get_texts()}


def test_effects_that_do_not_fit_are_refused(predicted):
    with pytest.raises(SchemaError, match=r"shape \(1, 3\); expected 4 genes"):
        effect_intervals(predicted, others={"measured": np.zeros(3)})
    with pytest.raises(ValueError, match="at most 4"):
        effect_intervals(predicted, others={str(i): np.zeros(4) for i in range(5)})
    with pytest.raises(ValueError, match="2 conditions"):
        effect_intervals(predicted, row=2)
    wrong = predicted.copy()
    wrong.layers["lfc"] = np.full(wrong.shape, np.nan)
    with pytest.raises(SchemaError, match="changes that are not finite"):
        effect_intervals(wrong)
    del predicted.layers["lower"]
    with pytest.raises(SchemaError, match="lower"):
        effect_intervals(predicted)


def test_support_is_sorted():
    ax = condition_support(["A", "B", "C"], [0.2, 0.9, 0.5])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["B", "C", "A"]
    table = pd.DataFrame({"name": ["A", "B"], "support": [0.1, 0.8]}, index=[7, 3])
    ax = condition_support(table["name"], table["support"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["B", "A"]
    with pytest.raises(ValueError, match="at least one"):
        condition_support([], [])
    with pytest.raises(ValueError, match="expected 0 to 1"):
        condition_support(["A"], [1.2])
    with pytest.raises(ValueError, match="2 names and 1 values"):
        condition_support(["A", "B"], [0.2])


def test_a_stage_is_drawn_on_the_axes_given():
    model = object.__new__(PerturbDiffusion)
    loss = pd.DataFrame({"loss": [3.0, 2.0, 1.0]}).rename_axis("epoch")
    model.history_ = {"representation_train_loss": loss, "generator_train_loss": loss / 10}
    _, ax = plt.subplots()
    assert training_curves(model, ax=ax) is ax
    np.testing.assert_allclose(ax.lines[0].get_ydata(), [0.3, 0.2, 0.1])
    first = training_curves(model, stage="representation")
    np.testing.assert_allclose(first.lines[0].get_ydata(), [3, 2, 1])
    del model.history_["representation_train_loss"]
    with pytest.raises(NotTrainedError, match="representation; it has generator"):
        training_curves(model, stage="representation")
