"""A figure of the changes of genes, predicted against measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.benchmark._view._choosing import records_of_task
from scvi_perturb.benchmark._view._drawing import axes_of, mark, tidy
from scvi_perturb.benchmark._view._reading import title_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from matplotlib.axes import Axes
    from numpy.typing import NDArray

    from scvi_perturb.benchmark.results import Record

__all__ = ["change_scatter"]

#: Of profiles in 32 bits, as a share of the changes.
_ROUNDING: Final = 1e-5
_CHANGE: Final = "change from control"


def change_scatter(
    records: Iterable[Record],
    *,
    task: str,
    method: str,
    titles: Mapping[str, str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw predicted against measured changes of the genes that change most in each condition.

    Parameters
    ----------
    records
        From `Results.records`.
    task, method
        Whose are drawn, over all folds and seeds.
    titles
        Names of methods and tasks for readers.
    ax
        Where to draw; None makes a figure.

    Returns
    -------
    matplotlib.axes.Axes
        With the line of equality and the Pearson correlation over all points.

    Raises
    ------
    ValueError
        If there are no changes of such a task and method.
    """
    chosen = [r for r in records_of_task(records, task) if r.method == method]
    pairs = [(r.curves.get("observed", []), r.curves.get("predicted", [])) for r in chosen]
    measured, predicted = (np.array([x for pair in pairs for x in pair[i]]) for i in (0, 1))
    both = np.isfinite(measured) & np.isfinite(predicted)
    if not both.any():
        msg = f"There are no predicted changes of {method!r} in task {task!r}."
        raise ValueError(msg)
    measured, predicted = measured[both], predicted[both]
    ax = axes_of(ax, (3.6, 3.8))
    limit = 1.08 * max(float(np.abs([measured, predicted]).max()), 1e-6)
    for line in (ax.axhline, ax.axvline):
        line(0, color="0.88", lw=0.8, zorder=0)
    ax.plot([-limit, limit], [-limit, limit], color="0.6", lw=1, ls="--", zorder=1)
    alpha = float(np.clip(300 / len(measured), 0.08, 0.6))
    colour = mark(chosen[0].role)[1]
    ax.scatter(measured, predicted, s=8, color=colour, alpha=alpha, lw=0, rasterized=True)
    ax.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    ax.text(0.04, 0.96, f"r = {_pearson(measured, predicted)}", transform=ax.transAxes, va="top")
    ax.locator_params(nbins=5)
    ax.set_xlabel(f"measured {_CHANGE}", fontsize=8)
    ax.set_ylabel(f"predicted {_CHANGE}", fontsize=8)
    ax.set_title(title_of(method, titles), fontsize=10)
    tidy(ax)
    return ax


def _pearson(first: NDArray[np.float64], second: NDArray[np.float64]) -> str:
    small = _ROUNDING * max(np.abs(first).max(), np.abs(second).max())
    if min(first.std(), second.std()) <= small:
        return "undefined"
    return f"{np.corrcoef(first, second)[0, 1]:.2f}"
