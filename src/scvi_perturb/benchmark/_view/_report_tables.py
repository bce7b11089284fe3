"""The tables of a report."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from scvi_perturb.benchmark._view._glossary import anchors, meaning
from scvi_perturb.benchmark._view._html import element, safe, table
from scvi_perturb.benchmark._view._reading import ROLES, UNDEFINED, direction, title_of
from scvi_perturb.benchmark._view._sheet import sheet
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    import pandas as pd

    from scvi_perturb.benchmark._view._sheet import Cell, Line

__all__ = ["cost_table", "glossary", "metric_table"]

_COSTS: Final = {
    "train_seconds": "training, s",
    "predict_seconds": "prediction, s",
    "trained_per_second": "cells trained a second",
    "predicted_per_second": "cells predicted a second",
    "peak_mib": "peak memory, MiB",
    "n_parameters": "parameters",
}


def metric_table(
    summary: pd.DataFrame, task: str, metrics: Sequence[str], titles: Mapping[str, str]
) -> str:
    """Return methods by metrics, with intervals and scores."""
    header = ["method", *(f"{METRICS[m].title} ({direction(METRICS[m])})" for m in metrics)]
    rows: list[str] = []
    role = ""
    for line in sheet(summary, task, metrics, titles):
        if line.role != role:
            role = line.role
            words = element("td", safe(ROLES.get(role, role)))
            rows.append(element("tr", words + "<td></td>" * len(metrics), css="role"))
        rows.append(_row(line))
    return table(header, rows)


def cost_table(cost: pd.DataFrame, task: str, titles: Mapping[str, str]) -> str:
    """Return what each method cost, mean over trials; nothing where it is not known."""
    part = cost[cost["task"] == task]
    columns = [name for name in _COSTS if name in part and part[name].notna().any()]
    if part.empty or not columns:
        return ""
    rows = []
    for _, row in part.iterrows():
        words = [title_of(str(row["method"]), titles), *(_amount(float(row[c])) for c in columns)]
        rows.append(element("tr", "".join(element("td", safe(word)) for word in words)))
    return table(["method", *(_COSTS[c] for c in columns)], rows)


def glossary(metrics: Iterable[str]) -> str:
    """Return what each metric is, which way it is better, and where it comes from."""
    rows = []
    for name in metrics:
        known = METRICS[name]
        words = (known.title, meaning(name), anchors(name), known.units, name, known.paper)
        rows.append(element("tr", "".join(element("td", safe(w or UNDEFINED)) for w in words)))
    header = ("metric", "what it asks", "reading", "units", "name in code", "paper")
    return table(header, rows, css="words")


def _row(line: Line) -> str:
    cells = "".join(_cell(cell) for cell in line.cells)
    css = "replicate" if line.role == "replicate" else ""
    return element("tr", element("td", safe(line.title)) + cells, css=css)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return element("td", UNDEFINED)
    minor = [cell.interval]
    if cell.score:
        minor.append(f"s {cell.score}" + (f" ({cell.score_interval})" * bool(cell.score_interval)))
    if cell.fewer:
        minor.append(f"{cell.fewer} conditions")
    content = element("span", safe(cell.value), css="value")
    content += "".join(element("span", safe(words), css="minor") for words in minor if words)
    names = [name for name in ("best", "opponent") if getattr(cell, name)]
    return element("td", content, css=" ".join(names))


def _amount(value: float) -> str:
    """Return an amount, which has no sign, with about three digits."""
    if not np.isfinite(value):
        return UNDEFINED
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
