"""A figure of what methods cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.benchmark._view._drawing import COLOURS, height, tidy
from scvi_perturb.benchmark._view._reading import title_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["cost_dots"]

_COLUMNS: Final = (("train_seconds", "predict_seconds"), ("peak_mib",))
#: Where the axes of seconds and of MiB begin.
_LEAST: Final = (1e-3, 0.1)


def cost_dots(
    cost: pd.DataFrame,
    *,
    task: str,
    titles: Mapping[str, str] | None = None,
    axes: Sequence[Axes] | None = None,
) -> list[Axes]:
    """Draw seconds of training and prediction, and memory, of each method on logarithmic axes.

    Parameters
    ----------
    cost
        From `Results.cost`.
    task
        Whose are drawn.
    titles
        Names of methods and tasks for readers.
    axes
        Two to draw on; None makes a figure.

    Returns
    -------
    list of matplotlib.axes.Axes
        Seconds; peak memory in MiB above what was held before. Below a millisecond or a tenth of
        a MiB the mark stands, open, at the end of the axis.

    Raises
    ------
    ValueError
        If the task has no cost, or the number of `axes` is not two.
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
    labels = [title_of(method, titles) for method in part["method"]]
    _dots(time, part["train_seconds"], _LEAST[0], ("o", COLOURS[0], "training"))
    _dots(time, part["predict_seconds"], _LEAST[0], ("D", COLOURS[1], "prediction"))
    _dots(memory, part["peak_mib"], _LEAST[1], ("s", COLOURS[2], "peak memory"))
    words = "seconds a trial", "peak memory above before, MiB"
    small = [
        (part[list(names)] <= least).to_numpy().any()
        for names, least in zip(_COLUMNS, _LEAST, strict=True)
    ]
    for ax, word, any_small, least in zip(axes, words, small, _LEAST, strict=True):
        ax.set_yticks(range(len(labels)), labels, fontsize=8)
        ax.set_ylim(len(labels) - 0.5, -0.5)
        ax.grid(axis="y", color="0.93", lw=0.6)
        ax.set_axisbelow(True)
        more = f"\nopen: {least:g} or less" if any_small else ""
        ax.set_xlabel(f"{word}, lower is better \u2190{more}", fontsize=8)
        tidy(ax)
    memory.tick_params(axis="y", length=0, labelleft=False)
    time.legend(
        loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=8, frameon=False, borderpad=0
    )
    memory.set_title(f"Cost \u00b7 {title_of(task, titles)}", fontsize=10, fontweight="bold")
    return [time, memory]


def _dots(ax: Axes, values: pd.Series[float], least: float, look: tuple[str, str, str]) -> None:
    """Draw values on a logarithmic axis; those of less than the least open, at its end."""
    from matplotlib.ticker import NullFormatter

    marker, colour, label = look
    given = values.to_numpy(np.float64)
    for i, value in enumerate(given.tolist()):
        if np.isfinite(value):
            face = colour if value > least else "white"
            ax.plot(max(value, least), i, marker, color=colour, mfc=face, ms=5, clip_on=False)
    ax.plot([], [], marker, color=colour, ms=5, label=label)
    drawn = [float(x) for line in ax.lines for x in np.asarray(line.get_xdata(), np.float64)]
    ax.set_xscale("log")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_xlim(least, 10 ** np.ceil(np.log10(1.2 * max([*drawn, 10 * least]))))
