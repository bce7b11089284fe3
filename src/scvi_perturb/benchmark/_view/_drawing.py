"""What figures of benchmarks share: rows of methods, their marks, and an axis that may be cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.benchmark._view._reading import ROLES, number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

__all__ = ["COLOURS", "DARK", "Row", "axes_of", "draw_rows", "height", "mark", "tidy"]

#: Colours of Okabe and Ito that show on white, as in `scvi_perturb.pl`.
COLOURS: Final = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DARK: Final = "#4D4D4D"
WIDTH: Final = 6.0
_MARKS: Final = {
    "model": ("o", COLOURS[0]),
    "cells": ("s", COLOURS[1]),
    "mean": ("D", COLOURS[2]),
    "replicate": ("*", DARK),
}


@dataclass(frozen=True, slots=True)
class Row:
    """A method in a figure: a value with its interval on the axis, and words to its right."""

    label: str
    role: str
    value: float
    low: float = np.nan
    high: float = np.nan
    text: str = ""


def mark(role: str) -> tuple[str, str]:
    """Return the marker and the colour of a role."""
    return _MARKS.get(role, ("o", COLOURS[3]))


def height(n_methods: int, n_roles: int = 3) -> float:
    """Return the height in inches that a figure with so many rows needs."""
    return float(max(2.6, 1.5 + 0.2 * (n_methods + n_roles)))


def axes_of(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """Return the Axes given, or those of a new figure."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def tidy(ax: Axes) -> None:
    """Take away what says nothing."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=8)


def draw_rows(
    ax: Axes, rows: Sequence[Row], limits: tuple[float, float], *, heading: str = ""
) -> bool:
    """Draw one row a method, below a heading for each role.

    Parameters
    ----------
    ax
        Where to draw.
    rows
        By role.
    limits
        Of the axis; a value beyond is an open arrow at its end, with the number.
    heading
        Over the words to the right.

    Returns
    -------
    Whether something lies beyond the axis.
    """
    labels: list[str] = []
    bold: list[int] = []
    cut = False
    for i, row in enumerate(rows):
        if i == 0 or row.role != rows[i - 1].role:
            bold.append(len(labels))
            labels.append(ROLES.get(row.role, row.role))
        y = len(labels)
        labels.append(row.label)
        ax.axhline(y, color="0.93", lw=0.6, zorder=0)
        cut |= _draw_row(ax, y, row, limits)
        _beside(ax, y, row.text)
    ax.set(xlim=limits, ylim=(len(labels) - 0.4, -0.6))
    ax.set_yticks(range(len(labels)), labels, fontsize=8)
    for place in bold:
        ax.get_yticklabels()[place].set_fontweight("bold")
    ax.tick_params(axis="y", length=0, pad=9)
    _beside(ax, 0, heading, weight="bold")
    tidy(ax)
    ax.spines["left"].set_visible(False)
    return cut


def _beside(ax: Axes, y: float, text: str, *, weight: str = "normal") -> None:
    ax.annotate(
        text,
        (1.02, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=8,
        fontweight=weight,
        annotation_clip=False,
    )


def _draw_row(ax: Axes, y: float, row: Row, limits: tuple[float, float]) -> bool:
    marker, colour = mark(row.role)
    if not np.isfinite(row.value):
        return False
    low, high = limits
    ends = [row.low, row.high] if np.isfinite([row.low, row.high]).all() else [row.value] * 2
    shown = np.clip(ends, low, high)
    inside = low <= row.value <= high
    if shown[0] < shown[1]:
        ax.plot(shown, [y, y], color=colour, lw=1.6, alpha=0.7, zorder=2, solid_capstyle="butt")
    if inside:
        size = 9 if marker == "*" else 5.5
        ax.plot(row.value, y, marker, color=colour, ms=size, zorder=3, clip_on=False)
        for end, arrow in ((low, "<"), (high, ">")):
            if ends[0] < low == end or ends[1] > high == end:
                ax.plot(end, y, arrow, color=colour, ms=4, zorder=3, clip_on=False)
        return ends[0] < low or ends[1] > high
    left = row.value < low
    end, arrow, side = (low, "<", "left") if left else (high, ">", "right")
    ax.plot(end, y, arrow, color=colour, mfc="white", ms=6, zorder=3, clip_on=False)
    shift = (7 if left else -7, 0)
    ax.annotate(
        number(row.value),
        (end, y),
        xytext=shift,
        textcoords="offset points",
        ha=side,
        va="center",
        fontsize=7,
        color=colour,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},
        zorder=4,
    )
    return True
