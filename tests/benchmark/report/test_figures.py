"""Figures of benchmarks: marks at the right places, and words that say what they are."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

import scvi_perturb as svp
from scvi_perturb._plotting import PALE
from scvi_perturb.benchmark.report import (
    calibration_curve,
    change_scatter,
    cost_dots,
    metric_values,
    score_bars,
)
from scvi_perturb.benchmark.report._tables import one_metric
from tests.benchmark._small_study import TASK, small_results


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return small_results(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def summary(results):
    return results.summary(n_boot=50)


@pytest.fixture(scope="module")
def records(results):
    return results.records()


def marks(ax) -> dict[str, tuple[float, str]]:
    """Value and marker of each method, by the label of its row."""
    labels = [label.get_text() for label in ax.get_yticklabels()]
    found = {}
    for line in ax.lines:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        if line.get_marker() not in {"None", ""} and len(x) == 1:
            found.setdefault(labels[int(y[0])], (float(x[0]), line.get_marker()))
    return found


def beside(ax) -> dict[str, str]:
    """Words to the right of each row."""
    labels = [label.get_text() for label in ax.get_yticklabels()]
    return {labels[int(t.xy[1])]: t.get_text() for t in ax.texts if t.xy[0] == 1.02}


def with_model(summary, metric: str, changes: dict[str, object]):
    """Return the rows of one metric with a model that has these values."""
    rows = one_metric(summary, TASK, metric)
    made = rows[rows["method"] == "shifted_control"].assign(method="mine", role="model", **changes)
    return pd.concat([rows, made], ignore_index=True)


def test_scores_stand_between_trivial_and_replicate(summary):
    given = {"u": 0.1, "s": 0.6, "s_low": 0.4, "s_high": 0.9, "u_low": 0.0, "u_high": 0.2}
    table = with_model(summary, "nmse_vs_no_change", given)
    ax = score_bars(table, task=TASK, metric="nmse_vs_no_change", titles={"mine": "My model"})
    found = marks(ax)
    assert found["My model"] == (0.6, "o")
    assert found["latent additive"] == (0.0, "D")
    assert beside(ax)["My model"] == "0.100"
    lines = {line.get_label(): line.get_xdata()[0] for line in ax.lines if " " in line.get_label()}
    (trivial,) = (x for name, x in lines.items() if name.startswith("0: best trivial"))
    (replicate,) = (x for name, x in lines.items() if name.startswith("1: replicate"))
    assert (trivial, replicate) == (0.0, 1.0)
    intervals = [tuple(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) == 2]
    assert (0.4, 0.9) in intervals
    assert "replicate" in ax.get_xlabel()


def test_methods_come_by_role_with_the_best_first(summary):
    table = with_model(summary, "nmse_vs_no_change", {"s": 0.6})
    ax = score_bars(table, task=TASK, metric="nmse_vs_no_change")
    labels = [label.get_text() for label in ax.get_yticklabels()]
    roles = ["models", "trivial: cells", "trivial: means"]
    assert [label for label in labels if label in roles] == roles
    means = labels[labels.index("trivial: means") + 1 :]
    u = table.set_index("method")["u"]
    assert means == sorted(means, key=lambda name: u[name.replace(" ", "_")])
    assert ax.yaxis_inverted()


def test_a_score_far_away_is_an_arrow_with_its_number(summary):
    table = with_model(summary, "nmse_vs_no_change", {"s": -40.0, "s_low": -1e14, "s_high": -30.0})
    ax = score_bars(table, task=TASK, metric="nmse_vs_no_change")
    place, marker = marks(ax)["mine"]
    assert marker == "<"
    assert place == ax.get_xlim()[0] > -2
    assert "-40.0" in {text.get_text() for text in ax.texts}
    assert "arrow: beyond the axis" in ax.get_xlabel()


def test_a_metric_without_scores_is_drawn_in_its_own_units(summary):
    table = one_metric(summary, TASK, "cosine_delta").assign(s=np.nan)
    ax = score_bars(table, task=TASK, metric="cosine_delta")
    u = table.set_index("method")["u"]
    assert marks(ax)["additive"][0] == pytest.approx(u["additive"])
    assert "higher is better" in ax.get_xlabel()


def test_a_method_without_a_score_says_so(summary):
    table = with_model(summary, "nmse_vs_no_change", {"s": np.nan, "n_conditions": 1, "u": 0.25})
    ax = score_bars(table, task=TASK, metric="nmse_vs_no_change")
    total = int(table["n_conditions"].max())
    label = f"mine (1 of {total})"
    assert label not in marks(ax)
    assert beside(ax)[label] == "0.250, no score"


def test_values_stand_beside_trivial_and_replicate(summary):
    ax = metric_values(summary, task=TASK, metric="variance_ratio")
    rows = one_metric(summary, TASK, "variance_ratio").set_index("method")
    lines = {line.get_label(): line.get_xdata()[0] for line in ax.lines}
    named = {name.split(" ")[0]: x for name, x in lines.items() if not name.startswith("_")}
    assert named["replicate"] == pytest.approx(rows.loc["replicate", "r"])
    assert named["best"] == pytest.approx(rows.loc["replicate", "b"])
    assert named["perfect"] == 1.0
    assert marks(ax)["shifted control"][0] == pytest.approx(rows.loc["shifted_control", "u"])


def test_one_value_far_away_does_not_hide_the_others(summary):
    table = with_model(summary, "nmse_vs_no_change", {"u": 1e6, "u_low": 1e5, "u_high": 1e7})
    ax = metric_values(table, task=TASK, metric="nmse_vs_no_change")
    assert ax.get_xlim()[1] < 100
    assert marks(ax)["mine"][1] == ">"


def test_labels_do_not_overlap(summary):
    ax = score_bars(summary, task=TASK, metric="nmse_vs_no_change")
    ax.figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in ax.get_yticklabels()]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    frame = ax.figure.bbox
    assert all(box.x0 >= frame.x0 for box in boxes)
    assert all(text.get_window_extent().x1 <= frame.x1 for text in ax.texts)


def test_changes_are_drawn_with_their_correlation(records):
    ax = change_scatter(records, task=TASK, method="additive")
    mine = [record for record in records if record.method == "additive"]
    x = np.concatenate([record.curves["observed"] for record in mine])
    y = np.concatenate([record.curves["predicted"] for record in mine])
    np.testing.assert_allclose(ax.collections[0].get_offsets(), np.column_stack([x, y]))
    assert ax.texts[0].get_text() == f"r = {np.corrcoef(x, y)[0, 1]:.2f}"
    assert ax.get_xlim() == ax.get_ylim()


def test_no_change_has_no_correlation(records):
    ax = change_scatter(records, task=TASK, method="no_change")
    assert ax.texts[0].get_text() == "r = undefined"


def test_calibration_is_the_distribution_of_ranks(records):
    ax = calibration_curve(records, task=TASK)
    lines = {line.get_label(): line for line in ax.lines}
    name = next(label for label in lines if label.startswith("shifted control"))
    ranks = [r.curves["pit"] for r in records if r.method == "shifted_control"]
    expected = np.concatenate([[0], np.cumsum(np.mean(ranks, axis=0))])
    np.testing.assert_allclose(lines[name].get_ydata(), expected)
    np.testing.assert_allclose(lines[name].get_xdata(), np.linspace(0, 1, 21))
    assert expected[-1] == pytest.approx(1)
    assert "Cell level" in ax.get_title()
    assert not any("additive" in label for label in lines)


def test_levels_of_calibration_are_not_mixed(records):
    with pytest.raises(ValueError, match="has ranks at effect level"):
        calibration_curve(records, task=TASK, level="effect")
    with pytest.raises(ValueError, match="level"):
        calibration_curve(records, task=TASK, level="gene")
    stated = [type(r)(**{**vars(r), "curves": {"effect_pit": [0.05] * 20}}) for r in records]
    ax = calibration_curve(stated, task=TASK, level="effect", methods=["additive"])
    assert "Effect level" in ax.get_title()
    assert [line.get_label() for line in ax.lines[1:]] == ["additive (0.000)"]


def test_past_six_methods_curves_are_pale(records):
    one = next(r for r in records if r.method == "shifted_control")
    many = [type(one)(**{**vars(one), "method": f"m{i}", "role": "model"}) for i in range(8)]
    ax = calibration_curve(many, task=TASK)
    colours = [to_hex(line.get_color()) for line in ax.lines[1:]]
    assert len(set(colours[:6])) == 6
    assert colours[6] == colours[7] == to_hex(PALE)


def test_costs_stand_on_logarithmic_axes(results):
    cost = results.cost().copy()
    cost.loc[cost["method"] == "additive", ["train_seconds", "peak_mib"]] = [50.0, 0.0]
    time, memory = cost_dots(cost, task=TASK)
    labels = [label.get_text() for label in time.get_yticklabels()]
    assert time.get_xscale() == memory.get_xscale() == "log"
    assert labels[0] == "additive"
    assert marks(time)["additive"] == (50.0, "o")
    first = next(line for line in memory.lines if len(line.get_xdata()))
    assert first.get_xdata()[0] == memory.get_xlim()[0] == 0.1
    assert "open: 0.1 or less" in memory.get_xlabel()
    with pytest.raises(ValueError, match="expected two"):
        cost_dots(cost, task=TASK, axes=[time])


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda s, r: score_bars(s, task="none", metric="nmse"), "no task 'none'.*sim"),
        (lambda s, r: metric_values(s, task=TASK, metric="none"), "no metric 'none'.*nmse"),
        (
            lambda s, r: change_scatter(r, task=TASK, method="none"),
            "no predicted changes of 'none'",
        ),
        (lambda s, r: calibration_curve(r, task="none"), "no records of task 'none'.*sim"),
        (lambda s, r: cost_dots(s[:0], task="none"), "no cost of task 'none'"),
    ],
)
def test_what_is_not_there_is_refused(summary, records, draw, message):
    with pytest.raises(ValueError, match=message):
        draw(summary, records)


def test_figures_are_public(summary):
    _, ax = plt.subplots()
    assert svp.pl.score_bars(summary, task=TASK, metric="nmse_vs_no_change", ax=ax) is ax
