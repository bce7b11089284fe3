"""How numbers are written, and what methods and metrics are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb.benchmark.methods import Method
    from scvi_perturb.benchmark.results import Results
    from scvi_perturb.benchmark.task import Task
    from scvi_perturb.metrics import Metric

__all__ = [
    "ROLES",
    "UNDEFINED",
    "bound",
    "direction",
    "number",
    "title_of",
    "titles_of",
]

#: Written where there is no number.
UNDEFINED: Final = "-"
#: Roles of methods in the order in which readers meet them.
ROLES: Final = {
    "model": "models",
    "cells": "trivial: cells",
    "mean": "trivial: means",
    "replicate": "experiment repeated",
}
#: Bounds of scores beyond this say only that they are far away.
_FAR = 100.0


def number(value: float) -> str:
    """Return a number with about three digits, "-" where there is none."""
    if not np.isfinite(value):
        return UNDEFINED
    size = abs(value)
    if size >= 1e5:
        return f"{value:.1e}"
    digits = 3 if size < 1 else 2 if size < 10 else 1 if size < 100 else 0
    written = f"{value:,.{digits}f}"
    return written.removeprefix("-") if float(written.replace(",", "")) == 0 else written


def bound(value: float) -> str:
    """Return a bound of a score's interval; one that is far away only says so."""
    if abs(value) > _FAR:
        return f"> {_FAR:g}" if value > 0 else f"< -{_FAR:g}"
    return number(value)


def direction(metric: Metric) -> str:
    """Return which way a metric is better, in words."""
    if metric.direction == "nearer":
        return f"best at {metric.best:g}"
    if metric.direction == "none":
        return "read beside others"
    return f"{metric.direction} is better"


def titles_of(results: Results) -> dict[str, str]:
    """Return names for readers of tasks and methods; empty without a study."""
    if results.study is None:
        return {}
    named: list[Task | Method] = [*results.study.tasks, *results.study.methods]
    return {one.name: one.title for one in named if one.title}


def title_of(name: str, titles: Mapping[str, str] | None) -> str:
    """Return the name of a method or task for readers."""
    return (titles or {}).get(name, name.replace("_", " "))
