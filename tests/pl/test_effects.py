"""Predicted against measured effects, and the labels beside points."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Annotation, Text

from scvi_perturb._plotting import grid, palette
from scvi_perturb.pl import effect_scatter
from scvi_perturb.pl._figures import label_points


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture
def effects() -> tuple[np.ndarray, np.ndarray]:
    true = np.random.default_rng(0).normal(size=(2, 50))
    return true + np.random.default_rng(1).normal(size=(2, 50)), true


def test_one_panel_a_condition_with_its_correlation(effects):
    predicted, true = effects
    axes = effect_scatter(predicted, true, titles=["A", "B"])
    assert [ax.get_title() for ax in axes] == ["A", "B"]
    for i, ax in enumerate(axes):
        assert ax.texts[0].get_text() == f"r = {np.corrcoef(predicted[i], true[i])[0, 1]:.2f}"
        where = np.asarray(ax.collections[0].get_offsets())
        np.testing.assert_allclose(where, np.column_stack([true[i], predicted[i]]))
        assert ax.get_xlim() == ax.get_ylim()


def test_the_largest_measured_effects_are_labelled(effects):
    predicted, true = effects
    genes = [f"g{i}" for i in range(50)]
    (ax,) = effect_scatter(predicted[0], true[0], genes=genes, n_labels=3)
    labels = {text.get_text() for text in ax.texts[1:]}
    top = {genes[i] for i in np.argsort(-np.abs(true[0]))[:3]}
    assert labels
    assert labels <= top


def test_no_change_has_no_correlation():
    (ax,) = effect_scatter(np.zeros(5), np.arange(5.0))
    assert ax.texts[0].get_text() == "r = undefined"


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"true_lfc": np.zeros((2, 4))}, r"\(2, 3\).*\(2, 4\)"),
        ({"genes": ["a"]}, "genes has 1 entries; expected 3"),
        ({"titles": ["a"]}, "titles has 1 entries; expected 2"),
        ({"axes": []}, "axes has 0 entries; expected 2"),
    ],
)
def test_what_does_not_match_is_refused(kwargs, message):
    given = {"predicted_lfc": np.zeros((2, 3)), "true_lfc": np.zeros((2, 3))} | kwargs
    with pytest.raises(ValueError, match=message):
        effect_scatter(given.pop("predicted_lfc"), given.pop("true_lfc"), **given)


def test_labels_do_not_overlap_and_stay_inside():
    (ax,) = grid(1)
    ax.set(xlim=(0, 1), ylim=(0, 1))
    points = np.random.default_rng(0).uniform(0.4, 0.6, size=(15, 2))
    written = label_points(ax, points, [f"gene_{i}" for i in range(15)])
    assert 3 < len(written) <= 15
    assert all(isinstance(text, Annotation) for text in written)
    renderer = ax.figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in written]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = ax.get_window_extent(renderer)
    assert all(frame.contains(*box.min) and frame.contains(*box.max) for box in boxes)


def test_colours_differ_until_they_run_out():
    colours = palette([f"p{i}" for i in range(8)] + ["control"])
    named = [colours[f"p{i}"] for i in range(6)]
    assert len(set(named)) == 6
    assert colours["p6"] == colours["p7"] != colours["control"]
