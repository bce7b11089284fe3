"""Figures of benchmarks: scores, values, calibration, changes of genes, cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

import numpy as np

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._plotting import COLOURS, DARK, PALE, axes_of, scatter_effects, tidy
from scvi_perturb.benchmark.report._tables import one_metric, opponent, records_of_task, rows_of
from scvi_perturb.benchmark.report._words import ROLES, direction, number, title_of
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform
    from numpy.typing import NDArray

    from scvi_perturb.benchmark.results import Record

#: Of calibration: values of single cells, or mean changes.
CalibrationLevel: TypeAlias = Literal["cell", "effect"]

#: Sizes of figures in inches.
WIDTH: Final = 4.1
CHANGES_SIZE: Final = (3.6, 3.8)
#: Marker and colour of each role.
_MARKS: Final = {
    "model": ("o", COLOURS[0]),
    "cells": ("s", COLOURS[1]),
    "mean": ("D", COLOURS[2]),
    "replicate": ("*", DARK),
}
#: Scores outside are arrows at the end of the axis.
_SCORES: Final = (-1.5, 2.0)
#: Values further from the median than this many median deviations are arrows ...
_DEVIATIONS: Final = 8.0
#: ... if the axis would else be this much longer.
_WORTH_A_CUT: Final = 3.0
_CURVES: Final = {"cell": "pit", "effect": "effect_pit"}
_STYLES: Final = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))
#: Marker, colour and name of each cost.
_COSTS: Final = {
    "train_seconds": ("o", COLOURS[0], "training"),
    "predict_seconds": ("D", COLOURS[1], "prediction"),
    "peak_mib": ("s", COLOURS[2], "peak memory"),
}


def calibration_size(n_methods: int) -> tuple[float, float]:
    """Return the size in inches of a figure of calibration: a square above its legend."""
    return WIDTH, 4.8 + 0.16 * n_methods


def height(n_methods: int, n_roles: int = 3) -> float:
    """Return the height in inches of a figure with a row for each method and each role."""
    return float(max(2.6, 1.5 + 0.2 * (n_methods + n_roles)))


@checked
def score_bars(
    summary: pd.DataFrame,
    *,
    task: str,
    metric: str,
    titles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the score of every method: 0 is the best trivial prediction, 1 the replicate.

    Lines are 95 % intervals over conditions. Scores below -1.5 and above 2 are arrows with their
    number at the end of the axis. Where no method has a score, as there is no replicate or it is
    no better than the best trivial prediction, the values themselves are drawn, see
    `metric_values`.

    `summary`: From `Results.summary`. `task`, `metric`: What of it is drawn. `titles`: Names of
    methods and tasks for readers. `ax`: Where to draw; None makes a figure. Returns methods by
    role, the best first. To the right stands the value of the metric. Raises `ValueError`: If the
    summary has no such task or metric.
    """
    table = one_metric(summary, task, metric)
    judged = table[table["role"] != "replicate"]
    if judged["s"].notna().sum() == 0:
        return metric_values(summary, task=task, metric=metric, titles=titles, ax=ax)
    points = _points(judged, "s", table, titles)
    ends = judged.loc[judged["s"].notna(), ["s", "s_low", "s_high"]].to_numpy(np.float64)
    low = max(min(float(np.nanmin(ends)), -0.15), _SCORES[0])
    high = min(max(float(np.nanmax(ends)), 1.15), _SCORES[1])
    margin = 0.03 * (high - low)
    rival = opponent(table)
    trivial = f"{title_of(rival.best_trivial, titles)} ({number(rival.b)})"
    lines = [
        (0.0, "--", f"0: best trivial prediction, {trivial}"),
        (1.0, "-", f"1: replicate of the experiment ({number(rival.r)})"),
    ]
    ax = axes_of(ax, (WIDTH, height(len(points))))
    ax.axvspan(0, 1, color="0.96", lw=0, zorder=-1)
    words = "score between trivial and replicate, better to the right \u2192"
    _draw_methods(ax, points, (low - margin, high + margin), lines=lines, words=words)
    _write_title(ax, task, metric, titles)
    return ax


@checked
def metric_values(
    summary: pd.DataFrame,
    *,
    task: str,
    metric: str,
    titles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot a metric of every method, with lines at the best trivial prediction and the replicate.

    `summary`, `task`, `metric`, `titles`, `ax`: As for :func:`score_bars`. Returns methods by role,
    the best first, with 95 % intervals over conditions. Values far from all others are arrows with
    their number at the end of the axis. Raises `ValueError`: If the summary has no such task or
    metric.
    """
    table = one_metric(summary, task, metric)
    known = METRICS[metric]
    judged = table[table["role"] != "replicate"]
    points = _points(judged if len(judged) else table, "u", table, titles)
    rival = opponent(table)
    lines = []
    if np.isfinite(rival.b):
        trivial = f"{title_of(rival.best_trivial, titles)} ({number(rival.b)})"
        lines.append((rival.b, "--", f"best trivial prediction, {trivial}"))
    if np.isfinite(rival.r):
        lines.append((rival.r, "-", f"replicate of the experiment ({number(rival.r)})"))
    if known.direction == "nearer":
        lines.append((known.best, ":", f"perfect ({known.best:g})"))
    ax = axes_of(ax, (WIDTH, height(len(points))))
    limits = _limits(points, [place for place, _, _ in lines])
    arrow = {"higher": " \u2192", "lower": " \u2190", "nearer": "", "none": ""}[known.direction]
    words = f"{known.units}, {direction(known)}{arrow}"
    _draw_methods(ax, points, limits, lines=lines, words=words)
    _write_title(ax, task, metric, titles)
    return ax


@checked
def calibration_curve(
    records: Iterable[Record],
    *,
    task: str,
    level: CalibrationLevel = "cell",
    methods: Sequence[str] | None = None,
    titles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot the share of real values below each predicted quantile.

    On the diagonal predicted distributions are right. Above it at the left and below it at the
    right, real values lie outside more often than predicted ones: predictions are too alike.

    `records`: From `Results.records`; each fold and seed counts alike. `task`: Whose are drawn.
    `level`: "cell": values of single cells among predicted cells. "effect": measured mean changes
    in the distribution that the stated standard error gives. They are never mixed. `methods`:
    Which; None takes all that have ranks. Past six, those that are furthest off are pale. `titles`,
    `ax`: As for :func:`score_bars`. Returns the mean distance from the diagonal stands beside each
    name. Raises `ValueError`: If no method has ranks at this level, or the level is neither.
    """
    check_choice("level", level, _CURVES)
    shares = _shares(records_of_task(records, task), level, methods)
    if not shares:
        source = {"cell": "cells", "effect": "standard errors"}[level]
        msg = f"No method of task {task!r} has ranks at {level} level; only predicted {source} do."
        raise ValueError(msg)
    ax = axes_of(ax, calibration_size(len(shares)))
    ax.plot([0, 1], [0, 1], color="0.75", lw=1, zorder=0)
    _draw_curves(ax, shares, titles)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    what = {"cell": "cells", "effect": "mean changes"}[level]
    ax.set_xlabel("predicted quantile: share expected below it", fontsize=8)
    ax.set_ylabel(f"share of real {what} below it", fontsize=8)
    where = {"cell": "Cell level: single cells", "effect": "Effect level: mean changes"}[level]
    ax.set_title(f"{where}\n{title_of(task, titles)}", fontsize=10, fontweight="bold")
    ax.legend(
        title="in brackets: mean distance from the diagonal",
        title_fontsize=8,
        fontsize=8,
        frameon=False,
        alignment="left",
        loc="upper left",
        bbox_to_anchor=(-0.1, -0.14),
        borderaxespad=0,
    )
    tidy(ax)
    return ax


@checked
def change_scatter(
    records: Iterable[Record],
    *,
    task: str,
    method: str,
    titles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot predicted against measured changes of the top genes of each condition.

    `records`, `titles`, `ax`: As for :func:`calibration_curve`. `task`, `method`: Whose are drawn,
    over all folds and seeds. Returns with the line of equality and the Pearson correlation over all
    points. Raises `ValueError`: If there are no changes of such a task and method.
    """
    chosen = [r for r in records_of_task(records, task) if r.method == method]
    pairs = [(r.curves.get("observed", []), r.curves.get("predicted", [])) for r in chosen]
    measured, predicted = (np.array([x for pair in pairs for x in pair[i]]) for i in (0, 1))
    both = np.isfinite(measured) & np.isfinite(predicted)
    if not both.any():
        msg = f"There are no predicted changes of {method!r} in task {task!r}."
        raise ValueError(msg)
    ax = axes_of(ax, CHANGES_SIZE)
    scatter_effects(
        ax,
        measured[both],
        predicted[both],
        what="change from control",
        color=_MARKS[chosen[0].role][1],
        alpha=float(np.clip(300 / both.sum(), 0.08, 0.6)),
    )
    ax.set_title(title_of(method, titles), fontsize=10)
    return ax


@checked
def cost_dots(
    cost: pd.DataFrame,
    *,
    task: str,
    titles: Mapping[str, str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Plot training time, prediction time and memory of each method on logarithmic axes.

    `cost`: From `Results.cost`. `task`, `titles`: As for :func:`score_bars`. `axes`: Two to draw
    on; None makes a figure. Returns seconds; peak memory in MiB above what was held before. Below a
    millisecond or a tenth of a MiB the mark stands, open, at the end of the axis. Raises
    `ValueError`: If the task has no cost, or the number of `axes` is not two.
    """
    part = cost[cost["task"] == task]
    if part.empty:
        msg = f"There is no cost of task {task!r}; there is some of {sorted(set(cost['task']))}."
        raise ValueError(msg)
    if axes is None:
        import matplotlib.pyplot as plt

        size = (7.0, height(len(part), 0))
        axes = list(plt.subplots(1, 2, figsize=size, layout="constrained", sharey=True)[1])
    if len(axes) != 2:
        msg = f"Found {len(axes)} axes; expected two, for seconds and for memory."
        raise ValueError(msg)
    part = part.sort_values("train_seconds", ascending=False)
    time, memory = axes
    seconds = ("train_seconds", "predict_seconds")
    _draw_dots(time, part, seconds, least=1e-3, words="seconds a trial")
    _draw_dots(memory, part, ["peak_mib"], least=0.1, words="peak memory above before, MiB")
    labels = [title_of(method, titles) for method in part["method"]]
    for ax in axes:
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
        ax.set_ylim(len(labels) - 0.5, -0.5)
    if time.get_shared_y_axes().joined(time, memory):
        memory.tick_params(axis="y", length=0, labelleft=False)
    time.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False, borderpad=0
    )
    title = f"Cost \u00b7 {title_of(task, titles)}"
    time.set_title(title, loc="left", fontsize=10, fontweight="bold", pad=20)
    return [time, memory]


@dataclass(frozen=True, slots=True)
class _Point:
    """A method in a figure: a value with its interval on the axis, and words to its right."""

    label: str
    role: str
    value: float
    low: float
    high: float
    text: str


def _points(
    rows: pd.DataFrame, name: str, table: pd.DataFrame, titles: Mapping[str, str] | None
) -> list[_Point]:
    """Return the metric ("u") or the score ("s") of methods.

    A method that was judged on fewer conditions than others in the table says so.
    """
    most = int(table["n_conditions"].max())
    made = []
    for row in rows_of(rows):
        fewer = f" ({row.n_conditions} of {most})" if row.n_conditions < most else ""
        value, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
        text = number(row.u) + (", no score" if name == "s" and not np.isfinite(value) else "")
        label = title_of(row.method, titles) + fewer
        made.append(_Point(label, row.role, value=value, low=low, high=high, text=text))
    return made


def _limits(points: Sequence[_Point], lines: Sequence[float]) -> tuple[float, float]:
    """Return limits that hold the lines and all values but those far from the others."""
    values = np.array([point.value for point in points if np.isfinite(point.value)])
    ends = np.array([x for point in points for x in (point.low, point.high) if np.isfinite(x)])
    every = np.concatenate([values, ends, np.asarray(lines, np.float64)])
    if every.size == 0:
        return 0.0, 1.0
    middle = np.median(values) if values.size else every[0]
    spread = _DEVIATIONS * float(np.median(np.abs(values - middle))) if values.size else 0.0
    low, high = float(every.min()), float(every.max())
    near = max(low, min([middle - spread, *lines])), min(high, max([middle + spread, *lines]))
    if spread > 0 and high - low > _WORTH_A_CUT * (near[1] - near[0]):
        low, high = near
    margin = 0.04 * (high - low) or 0.5 * max(abs(high), 1e-3)
    return float(low - margin), float(high + margin)


def _draw_methods(
    ax: Axes,
    points: Sequence[_Point],
    limits: tuple[float, float],
    *,
    lines: Sequence[tuple[float, str, str]],
    words: str,
) -> None:
    """Draw one row a method, below a heading for each role; `words` name the axis.

    `lines` are vertical: place, style, and the label in the legend.
    """
    for place, style, label in lines:
        ax.axvline(place, color=DARK, ls=style, lw=1.2, zorder=1, label=label)
    labels: list[str] = []
    headings: list[int] = []
    cut = False
    for i, point in enumerate(points):
        if i == 0 or point.role != points[i - 1].role:
            headings.append(len(labels))
            labels.append(ROLES[point.role])
        y = len(labels)
        labels.append(point.label)
        ax.axhline(y, color="0.93", lw=0.6, zorder=0)
        cut |= _draw_point(ax, y, point, limits)
        _write_beside(ax, y, point.text)
    ax.set(xlim=limits, ylim=(len(labels) - 0.4, -0.6))
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    for place in headings:
        ax.get_yticklabels()[place].set_fontweight("bold")
    ax.tick_params(axis="y", length=0, pad=9)
    _write_beside(ax, 0, "value", weight="bold")
    tidy(ax)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel(words + ("\narrow: beyond the axis" if cut else ""), fontsize=8, loc="right")


def _draw_point(ax: Axes, y: float, point: _Point, limits: tuple[float, float]) -> bool:
    """Draw a value and its interval; return whether something lies beyond the axis."""
    if not np.isfinite(point.value):
        return False
    marker, colour = _MARKS[point.role]
    low, high = limits
    known = np.isfinite([point.low, point.high]).all()
    ends = (point.low, point.high) if known else (point.value, point.value)
    shown = np.clip(ends, low, high)
    if shown[0] < shown[1]:
        ax.plot(shown, [y, y], color=colour, lw=1.6, alpha=0.7, zorder=2, solid_capstyle="butt")
    if low <= point.value <= high:
        size = 9 if marker == "*" else 5.5
        ax.plot(point.value, y, marker, color=colour, ms=size, zorder=3, clip_on=False)
        for end, arrow in ((low, "<"), (high, ">")):
            if ends[0] < low == end or ends[1] > high == end:
                ax.plot(end, y, arrow, color=colour, ms=4, zorder=3, clip_on=False)
        return ends[0] < low or ends[1] > high
    left = point.value < low
    end, arrow, side = (low, "<", "left") if left else (high, ">", "right")
    ax.plot(end, y, arrow, color=colour, mfc="white", ms=6, zorder=3, clip_on=False)
    if number(point.value) == point.text:  # which stands to the right of it
        return True
    ax.annotate(
        number(point.value),
        (end, y),
        xytext=(7 if left else -7, 0),
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=7,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        zorder=4,
    )
    return True


def _write_beside(ax: Axes, y: float, text: str, *, weight: str = "normal") -> None:
    """Write text to the right of a row."""
    ax.annotate(
        text,
        (1.02, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        fontweight=weight,
        annotation_clip=False,
    )


def _write_title(ax: Axes, task: str, metric: str, titles: Mapping[str, str] | None) -> None:
    """Write the title, and below it what the vertical lines are, from the left of the labels."""
    from matplotlib.transforms import IdentityTransform, ScaledTranslation

    figure = ax.get_figure()
    widest = max(len(label.get_text()) for label in ax.get_yticklabels())
    left: Transform = IdentityTransform()
    if figure is not None:
        left = ScaledTranslation(-4.2 * widest / 72, 0, figure.dpi_scale_trans)
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(0.0, 1.0),
            bbox_transform=ax.transAxes + left,
            frameon=False,
            fontsize=8,
            handlelength=1.8,
            labelspacing=0.25,
            borderaxespad=0.1,
        )
    title = ax.set_title(
        f"{METRICS[metric].title} \u00b7 {title_of(task, titles)}",
        loc="left",
        fontsize=10,
        fontweight="bold",
        pad=6 + 13 * len(handles),
    )
    title.set_transform(title.get_transform() + left)


def _shares(
    records: Sequence[Record], level: CalibrationLevel, methods: Sequence[str] | None
) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Return role and shares of ranks in equal bins of each method, mean over its records."""
    found: dict[str, tuple[str, list[list[float]]]] = {}
    for record in records:
        ranks = record.curves.get(_CURVES[level])
        if ranks and sum(ranks) > 0 and (methods is None or record.method in methods):
            found.setdefault(record.method, (record.role, []))[1].append(ranks)
    return {m: (role, np.mean(every, axis=0)) for m, (role, every) in found.items()}


def _draw_curves(
    ax: Axes,
    shares: Mapping[str, tuple[str, NDArray[np.float64]]],
    titles: Mapping[str, str] | None,
) -> None:
    """Draw the cumulative share of ranks of each method, by role, then the best first."""
    n_bins = len(next(iter(shares.values()))[1])
    quantiles = np.linspace(0, 1, n_bins + 1)
    curves = {m: (role, np.concatenate([[0.0], np.cumsum(s)])) for m, (role, s) in shares.items()}
    error = {method: float(np.abs(c - quantiles).mean()) for method, (_, c) in curves.items()}
    order = sorted(curves, key=lambda m: (list(ROLES).index(curves[m][0]), error[m]))
    named = [m for m in order if curves[m][0] != "replicate"]
    looks = dict(zip(named, zip(COLOURS, _STYLES, strict=True), strict=False))
    for method in order:
        role, curve = curves[method]
        colour, style = (DARK, "-") if role == "replicate" else looks.get(method, (PALE, "-"))
        width, zorder = (1.0, 1) if colour == PALE else (1.6, 2)
        label = f"{title_of(method, titles)} ({error[method]:.3f})"
        ax.plot(quantiles, curve, color=colour, ls=style, lw=width, label=label, zorder=zorder)


def _draw_dots(
    ax: Axes, part: pd.DataFrame, columns: Sequence[str], *, least: float, words: str
) -> None:
    """Draw columns on a logarithmic axis; values up to the least are open, at its end."""
    from matplotlib.ticker import NullFormatter

    values = part[list(columns)].to_numpy(np.float64)
    for column, given in zip(columns, values.T.tolist(), strict=True):
        marker, colour, label = _COSTS[column]
        for i, value in enumerate(given):
            if np.isfinite(value):
                face = colour if value > least else "white"
                ax.plot(max(value, least), i, marker, color=colour, mfc=face, ms=5, clip_on=False)
        ax.plot([], [], marker, color=colour, ms=5, label=label)
    largest = max([*values[np.isfinite(values)].tolist(), 10 * least])
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(least, 10 ** np.ceil(np.log10(1.2 * largest)))
    ax.grid(axis="y", color="0.93", lw=0.6)
    ax.set_axisbelow(True)
    more = f"\nopen: {least:g} or less" if (values <= least).any() else ""
    ax.set_xlabel(f"{words}, lower is better \u2190{more}", fontsize=8)
    tidy(ax)
