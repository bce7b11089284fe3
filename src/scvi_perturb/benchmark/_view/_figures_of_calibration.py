"""A figure of calibration: where real values fall in predicted distributions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

import numpy as np

from scvi_perturb._errors import check_choice
from scvi_perturb.benchmark._view._choosing import records_of_task
from scvi_perturb.benchmark._view._drawing import COLOURS, DARK, axes_of, tidy
from scvi_perturb.benchmark._view._reading import ROLES, title_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from scvi_perturb.benchmark.results import Record

__all__ = ["Level", "calibration_curve"]

#: Of calibration: values of single cells, or mean changes.
Level = Literal["cell", "effect"]
_CURVES: Final = {"cell": "pit", "effect": "effect_pit"}
_PALE: Final = "#D3D3D3"
_STYLES: Final = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)))


def calibration_curve(
    records: Iterable[Record],
    *,
    task: str,
    level: Level = "cell",
    methods: Sequence[str] | None = None,
    titles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw which share of real values lies below each predicted quantile.

    On the diagonal predicted distributions are right. Above it at the left and below it at the
    right, real values lie outside more often than predicted ones: predictions are too alike.

    Parameters
    ----------
    records
        From `Results.records`; each fold and seed counts alike.
    task
        Whose are drawn.
    level
        "cell": values of single cells among predicted cells. "effect": measured mean changes in
        the distribution that the stated standard error gives. They are never mixed.
    methods
        Which; None takes all that have ranks. Past six, those that are furthest off are pale.
    titles
        Names of methods and tasks for readers.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        The mean distance from the diagonal stands beside each name.

    Raises
    ------
    ValueError
        If no method has ranks at this level, or the level is neither.
    """
    check_choice("level", level, _CURVES)
    shares = _shares(records_of_task(records, task), level, methods)
    if not shares:
        source = {"cell": "cells", "effect": "standard errors"}[level]
        msg = f"No method of task {task!r} has ranks at {level} level; only predicted {source} do."
        raise ValueError(msg)
    ax = axes_of(ax, (7.2, 4.0))
    ax.plot([0, 1], [0, 1], color="0.75", lw=1, zorder=0)
    n_bins = len(next(iter(shares.values()))[1])
    grid = np.linspace(0, 1, n_bins + 1)
    curves = {m: (role, np.concatenate([[0.0], np.cumsum(s)])) for m, (role, s) in shares.items()}
    error = {method: float(np.abs(c - grid).mean()) for method, (_, c) in curves.items()}
    order = sorted(curves, key=lambda m: (list(ROLES).index(curves[m][0]), error[m]))
    named = [m for m in order if curves[m][0] != "replicate"]
    colours = dict(zip(named, COLOURS, strict=False))
    for method in order:
        role, curve = curves[method]
        pale = role != "replicate" and method not in colours
        colour = DARK if role == "replicate" else colours.get(method, _PALE)
        style = "-" if pale or role == "replicate" else _STYLES[named.index(method)]
        label = f"{title_of(method, titles)} ({error[method]:.3f})"
        width = 1.0 if pale else 1.6
        ax.plot(grid, curve, color=colour, ls=style, lw=width, label=label, zorder=1 if pale else 2)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    what = "cells" if level == "cell" else "mean changes"
    ax.set_xlabel("predicted quantile: share expected below it", fontsize=8)
    ax.set_ylabel(f"share of real {what} below it", fontsize=8)
    where = {"cell": "Cell level: single cells", "effect": "Effect level: mean changes"}[level]
    ax.set_title(f"{where} \u00b7 {title_of(task, titles)}", fontsize=10, fontweight="bold")
    ax.legend(
        title="mean distance\nfrom the diagonal",
        title_fontsize=8,
        fontsize=8,
        frameon=False,
        loc="upper left",
        bbox_to_anchor=(1.02, 1.0),
        borderaxespad=0,
    )
    tidy(ax)
    return ax


def _shares(
    records: Sequence[Record], level: Level, methods: Sequence[str] | None
) -> dict[str, tuple[str, NDArray[np.float64]]]:
    """Return role and shares of ranks in equal bins of each method, mean over its records."""
    found: dict[str, tuple[str, list[list[float]]]] = {}
    for record in records:
        ranks = record.curves.get(_CURVES[level])
        if ranks and sum(ranks) > 0 and (methods is None or record.method in methods):
            found.setdefault(record.method, (record.role, []))[1].append(ranks)
    return {m: (role, np.mean(every, axis=0)) for m, (role, every) in found.items()}
