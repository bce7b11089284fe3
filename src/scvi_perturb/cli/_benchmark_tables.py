"""The tables that `scvi-perturb benchmark` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
from rich import box
from rich.table import Table

from scvi_perturb.benchmark import REPLICATE
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd

    from scvi_perturb.benchmark import Study

__all__ = ["score_tables", "trouble_lines"]

#: What is printed, as far as it is defined; files hold all.
_PRINTED: Final = (
    "nmse_vs_no_change",
    "cosine_delta",
    "discrimination",
    "de_jaccard",
    "energy_ratio",
    "variance_ratio",
    "pit_ece",
)
#: Characters that a column of numbers takes.
_WIDTH: Final = 17
_NOTHING: Final = "-"
_STYLES: Final = {"model": "bold", "replicate": "dim"}


def score_tables(
    everything: pd.DataFrame, clear: pd.DataFrame, study: Study, *, width: int
) -> Iterator[Table]:
    """Yield a table for each task: the value of each metric, and its score between b and r.

    Parameters
    ----------
    everything, clear
        Summaries over all conditions, and over those with a clear effect; where a task has any of
        these, they are shown.
    study
        Gives tasks and methods their order, and the names for readers.
    width
        Characters of a line; a table that would be wider is given in parts.
    """
    titles = {task.name: task.title or task.name for task in study.tasks}
    heads = {method.name: method.title for method in study.methods} | {REPLICATE: REPLICATE}
    most = max(1, (width - max(map(len, heads.values())) - 4) // _WIDTH)
    for task, whole in everything.groupby("task", sort=False):
        some = clear[clear["task"] == task] if len(clear) else clear
        part = some if len(some) else whole
        n, total = (int(frame["n_conditions"].max()) for frame in (part, whole))
        of = (
            f"the {n} of {total} conditions with a clear effect" if n < total else f"{n} conditions"
        )
        title = f"{titles.get(str(task), task)}: {of}; value, and in brackets the score s"
        names = [name for name in _PRINTED if name in set(part["metric"])]
        for start in range(0, len(names), most):
            yield _table(part, title if start == 0 else "", heads, names[start : start + most])


def _table(part: pd.DataFrame, title: str, heads: dict[str, str], names: list[str]) -> Table:
    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("method", no_wrap=True)
    for name in names:
        metric = METRICS[name]
        says = {"higher": "high", "lower": "low", "nearer": f"near {metric.best:g}", "none": "-"}
        head = f"{metric.title}\n({says[metric.direction]})"
        made.add_column(head, justify="right", no_wrap=True)
    pairs = zip(part["method"], part["metric"], strict=True)
    values = dict(zip(pairs, zip(part["u"], part["s"], strict=True), strict=True))
    roles = dict(zip(part["method"], part["role"], strict=True))
    for method, head in heads.items():
        cells = [_cell(*values.get((method, name), (np.nan, np.nan))) for name in names]
        if set(cells) != {_NOTHING}:
            made.add_row(head, *cells, style=_STYLES.get(roles[method]))
    return made


def _cell(value: float, score: float) -> str:
    """Return the value and the score, which is not defined everywhere."""
    return _number(value) if np.isnan(score) else f"{_number(value)} ({score:.2f})"


def _number(value: float) -> str:
    if np.isnan(value):
        return _NOTHING
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def trouble_lines(status: pd.DataFrame) -> Iterator[str]:
    """Yield a line for each task, method and status other than "ok", with the first message."""
    found = status[status["status"] != "ok"]
    for (task, method, kind), part in found.groupby(["task", "method", "status"], sort=False):
        trials = f"{len(part)} trial{'s' if len(part) > 1 else ''}"
        message = " ".join(str(part["message"].iloc[0]).split())
        yield f"{task}, {method}: {kind} in {trials}: {message}"
