"""Words in figures of one metric: names of rows, lines that are told in a legend, the title."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scvi_perturb.benchmark._view._drawing import DARK
from scvi_perturb.benchmark._view._reading import title_of
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from matplotlib.axes import Axes

__all__ = ["draw_line", "label_of", "name_axis", "write_title"]


def label_of(row: Any, table: pd.DataFrame, titles: Mapping[str, str] | None) -> str:  # noqa: ANN401
    """Return the name of a method; one that was judged on fewer conditions says so."""
    most = int(table["n_conditions"].max())
    fewer = f" ({row.n_conditions} of {most})" if row.n_conditions < most else ""
    return title_of(row.method, titles) + fewer


def draw_line(ax: Axes, x: float, style: str, label: str) -> None:
    ax.axvline(x, color=DARK, ls=style, lw=1.2, zorder=1, label=label)


def name_axis(ax: Axes, words: str, *, cut: bool) -> None:
    more = "\narrow: beyond the axis" if cut else ""
    ax.set_xlabel(words + more, fontsize=8)


def write_title(ax: Axes, task: str, metric: str, titles: Mapping[str, str] | None) -> None:
    """Write the title, and below it what the vertical lines are."""
    handles, labels = ax.get_legend_handles_labels()
    if handles:
        ax.legend(
            handles,
            labels,
            loc="lower left",
            bbox_to_anchor=(-0.02, 1.0),
            frameon=False,
            fontsize=8,
            handlelength=1.8,
            labelspacing=0.25,
            borderaxespad=0.1,
        )
    ax.set_title(
        f"{METRICS[metric].title} \u00b7 {title_of(task, titles)}",
        loc="left",
        fontsize=10,
        fontweight="bold",
        pad=6 + 13 * len(handles),
    )
