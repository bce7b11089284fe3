"""What reports show: the results of a study by task, as tables of words for any kind of page."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from scvi_perturb.benchmark.report import _words
from scvi_perturb.benchmark.report._words import ROLES, UNDEFINED, bound, number, title_of
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from scvi_perturb.benchmark.methods import Method
    from scvi_perturb.benchmark.results import Record, Results
    from scvi_perturb.benchmark.task import Task
    from scvi_perturb.metrics import Metric

_KEY_COUNTS: Final = (
    "nmse_vs_no_change",
    "cosine_delta_control",
    "cosine_delta",
    "discrimination",
    "r2_weighted",
    "de_direction_yield",
    "energy_ratio",
    "variance_ratio",
    "correlation_agreement",
    "zero_fraction_error",
    "pit_ece",
    "crps",
)
_KEY_EFFECTS: Final = ("nmse", "cosine_delta", "discrimination", "discrimination_centred")
_COSTS: Final = {
    "train_seconds": "training, s",
    "predict_seconds": "prediction, s",
    "trained_per_second": "cells trained a second",
    "predicted_per_second": "cells predicted a second",
    "peak_mib": "peak memory, MiB",
    "n_parameters": "parameters",
}
#: The longest message of a method that did not answer.
_LONGEST: Final = 300


@dataclass(frozen=True)
class TaskSection:
    """The results of one task, and how its name and those of methods are written."""

    name: str
    note: str
    titles: Mapping[str, str]
    records: list[Record]
    #: Rows of this task of `Results.summary`, of that of clear effects alone, and of the cost.
    summary: pd.DataFrame
    clear: pd.DataFrame
    cost: pd.DataFrame
    #: Every score of every condition, see `Results.frame`.
    frame: pd.DataFrame

    @property
    def roles(self) -> dict[str, str]:
        """The role of each method."""
        return {record.method: record.role for record in self.records}

    @property
    def title(self) -> str:
        return title_of(self.name, self.titles)

    @cached_property
    def metrics(self) -> list[str]:
        """Metrics of the task: the key ones, then the others."""
        return list(dict.fromkeys([*self.keys, *self.summary["metric"]]))

    @cached_property
    def keys(self) -> list[str]:
        """Metrics of a short table: the key ones, or the first eight if the task has none."""
        every = list(dict.fromkeys(self.summary["metric"]))
        return key_metrics(self.summary, self.name) or every[:8]

    @cached_property
    def conditions(self) -> dict[str, dict[str, Any]]:
        """What is known of each held-out condition, by its name."""
        return {c["condition"]: c for record in self.records for c in record.conditions}

    @property
    def n_conditions(self) -> int:
        return 0 if self.summary.empty else int(self.summary["n_conditions"].max())

    @property
    def n_clear(self) -> int:
        """Number of conditions with a clear effect."""
        return 0 if self.clear.empty else int(self.clear["n_conditions"].max())

    def scores(self, metrics: Sequence[str], *, clear: bool = False) -> ScoreTable:
        """Return methods by those of the metrics that are known; `clear`: of clear effects."""
        summary = self.clear if clear else self.summary
        known = set(summary["metric"])
        return score_table(summary, self.name, [m for m in metrics if m in known], self.titles)

    def costs(self) -> pd.DataFrame:
        """Return what each method cost in words, mean over trials; no column if not known."""
        names = [name for name in _COSTS if name in self.cost and self.cost[name].notna().any()]
        if not names:
            return pd.DataFrame()
        table = self.cost[names].map(_amount).rename(columns=_COSTS)
        table.insert(0, "method", [title_of(m, self.titles) for m in self.cost["method"]])
        return table

    def troubles(self) -> list[str]:
        """Return a line for each method that refused or failed, with its first message."""
        found: dict[tuple[str, str], list[Record]] = {}
        for record in self.records:
            if record.status != "ok":
                found.setdefault((record.method, record.status), []).append(record)
        lines = []
        for (method, status), every in found.items():
            total = sum(record.method == method for record in self.records)
            message = " ".join(every[0].message.split())
            short = message if len(message) <= _LONGEST else message[: _LONGEST - 3] + "..."
            done = f"{status} in {len(every)} of {total} trials"
            lines.append(f"{title_of(method, self.titles)} {done}: {short}")
        return lines


def read_sections(results: Results) -> list[TaskSection]:
    """Return the results of each task.

    Raises `SchemaError`: If there are no results.
    """
    records, cost = results.records(), results.cost()
    scored = any(record.scores for record in records)
    frame = results.frame() if scored else pd.DataFrame(columns=["task"])
    summary, clear = (_summary_of(results, scored=scored, clear=c) for c in (False, True))
    tasks = () if results.study is None else results.study.tasks
    methods = () if results.study is None else results.study.methods
    named: list[Task | Method] = [*tasks, *methods]
    titles = {one.name: one.title for one in named if one.title}
    notes = {task.name: task.note for task in tasks}
    return [
        TaskSection(
            name=name,
            note=notes.get(name, ""),
            titles=titles,
            records=records_of_task(records, name),
            summary=summary[summary["task"] == name],
            clear=clear[clear["task"] == name],
            cost=cost[cost["task"] == name],
            frame=frame[frame["task"] == name],
        )
        for name in dict.fromkeys(record.task for record in records)
    ]


def _summary_of(results: Results, *, scored: bool, clear: bool) -> pd.DataFrame:
    """Return the summary of results; an empty table where no method has scores."""
    found = results.summary(clear=clear) if scored else pd.DataFrame()
    columns = ["task", "metric", "method", "role", "n_conditions"]
    return found if len(found) else pd.DataFrame(columns=columns)


@dataclass(frozen=True, slots=True)
class ScoreEntry:
    """A metric of a method in words; empty where there is nothing to say."""

    #: The metric, with its 95 % interval over conditions.
    value: str
    interval: str
    #: Between the best trivial prediction and the replicate.
    score: str
    score_interval: str
    #: Whether no method is better; the replicate is none.
    best: bool
    #: Whether it is the best trivial prediction.
    opponent: bool
    #: Number of conditions, where it is less than that of others.
    fewer: str


@dataclass(frozen=True, slots=True)
class MethodRow:
    """A method with its metrics; None where it has none."""

    method: str
    title: str
    role: str
    entries: tuple[ScoreEntry | None, ...]

    @property
    def place(self) -> int:
        """Place of the role among roles."""
        return list(ROLES).index(self.role)


@dataclass(frozen=True, slots=True)
class ScoreTable:
    """Methods by metrics."""

    header: list[str]
    rows: list[MethodRow]


def score_table(
    summary: pd.DataFrame,
    task: str,
    metrics: Sequence[str],
    titles: Mapping[str, str] | None = None,
) -> ScoreTable:
    """Return methods by role, then by the first metric, with an entry for each metric."""
    parts = [one_metric(summary, task, metric) for metric in metrics]
    columns = [_entries(part, metric) for part, metric in zip(parts, metrics, strict=True)]
    roles: dict[str, str] = {}
    for part in parts:
        roles = dict(zip(part["method"], part["role"], strict=True)) | roles
    rows = [
        MethodRow(method, title_of(method, titles), role, tuple(c.get(method) for c in columns))
        for method, role in sorted(roles.items(), key=lambda item: list(ROLES).index(item[1]))
    ]
    header = [f"{METRICS[m].title} ({_words.direction(METRICS[m])})" for m in metrics]
    return ScoreTable(["method", *header], rows)


def _entries(rows: pd.DataFrame, metric: str) -> dict[str, ScoreEntry]:
    """Return the entry of each method in the rows of one metric."""
    best = _best_methods(rows, METRICS[metric])
    rival = opponent(rows).best_trivial
    most = int(rows["n_conditions"].max())
    made = {}
    for row in rows_of(rows):
        # The score of the replicate is 1 by definition, and not said.
        scored = row.role != "replicate" and np.isfinite(row.s)
        made[str(row.method)] = ScoreEntry(
            value=number(row.u),
            interval=_interval(number(row.u_low), number(row.u_high), row.u_low, row.u_high),
            score=number(row.s) if scored else "",
            score_interval=_interval(bound(row.s_low), bound(row.s_high), row.s_low, row.s_high)
            if scored
            else "",
            best=row.method in best,
            opponent=row.method == rival,
            fewer=f"{row.n_conditions} of {most}" if row.n_conditions < most else "",
        )
    return made


def _interval(low: str, high: str, *ends: float) -> str:
    """Return an interval in words; nothing where it is not known or has no width."""
    wide = np.isfinite(ends).all() and not np.isclose(ends[0], ends[-1], rtol=1e-5, atol=1e-9)
    return f"{low} to {high}" if wide else ""


def _best_methods(rows: pd.DataFrame, metric: Metric) -> set[str]:
    """Return the best methods but the replicate, among those judged on the most conditions."""
    rivals = rows[(rows["role"] != "replicate") & rows["u"].notna()]
    rivals = rivals[rivals["n_conditions"] == rivals["n_conditions"].max()]
    if rivals.empty:
        return set()
    loss = _loss(metric, rivals["u"].to_numpy(np.float64))
    return set(rivals["method"][loss <= loss.min() + 1e-12])


def _loss(metric: Metric, values: np.ndarray) -> np.ndarray:
    """Return values turned so that lower is better, also where no best value is known."""
    if metric.direction == "nearer":
        return np.abs(values - metric.best)
    return -values if metric.direction == "higher" else values


def opponent(rows: pd.DataFrame) -> Any:  # noqa: ANN401
    """Return the row that says what the best trivial prediction and the replicate reach.

    That of the method that was judged on the most conditions; the values of others are over fewer.
    """
    known = rows[rows["best_trivial"].fillna("") != ""]
    return (known if len(known) else rows).sort_values("n_conditions", kind="stable").iloc[-1]


def rows_of(table: pd.DataFrame) -> list[Any]:
    """Return the rows of a table with its columns as attributes."""
    return list(table.itertuples())


def key_metrics(summary: pd.DataFrame, task: str) -> list[str]:
    """Return the metrics that a short table of a task shows; those that it has."""
    part = summary[summary["task"] == task]
    has_cells = (part["role"] == "replicate").any()
    there = set(part["metric"])
    return [name for name in (_KEY_COUNTS if has_cells else _KEY_EFFECTS) if name in there]


def one_metric(summary: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Return the rows of one metric of one task: by role, then the best first.

    Raises `ValueError`: If there are none.
    """
    part = summary[summary["task"] == task]
    if part.empty:
        msg = f"The summary has no task {task!r}; it has {sorted(set(summary['task']))}."
        raise ValueError(msg)
    there = sorted(set(part["metric"]))
    if metric not in there:
        msg = f"Task {task!r} has no metric {metric!r}; it has {there}."
        raise ValueError(msg)
    part = part[part["metric"] == metric]
    place = part["role"].map({role: i for i, role in enumerate(ROLES)}).to_numpy(np.int64)
    loss = _loss(METRICS[metric], part["u"].to_numpy(np.float64))
    return part.iloc[np.lexsort([loss, place])].reset_index(drop=True)


def records_of_task(records: Iterable[Record], task: str) -> list[Record]:
    """Return the records of a task.

    Raises `ValueError`: If there are none.
    """
    every = list(records)
    found = [record for record in every if record.task == task]
    if not found:
        there = sorted({record.task for record in every})
        msg = f"There are no records of task {task!r}; there are some of {there}."
        raise ValueError(msg)
    return found


def glossary(metrics: Iterable[str]) -> pd.DataFrame:
    """Return what each metric is, which way it is better, and where it comes from."""
    header = ["metric", "what it asks", "reading", "units", "name in code", "paper"]
    rows = []
    for name in metrics:
        known = METRICS[name]
        words = (
            known.title,
            _words.meaning(name),
            _words.anchors(name),
            known.units,
            name,
            known.paper,
        )
        rows.append([word or UNDEFINED for word in words])
    return pd.DataFrame(rows, columns=header)


def versions_of(records: Iterable[Record]) -> str:
    """Return the versions that made the records; all of them, where there are several."""
    versions: dict[str, dict[str, None]] = {}
    for record in records:
        for name, found in record.provenance.get("versions", {}).items():
            versions.setdefault(name, {})[found] = None
    named = [f"{name} {' and '.join(numbers)}" for name, numbers in versions.items()]
    return f"Versions: {', '.join(named) or 'not known'}"


def _amount(value: float) -> str:
    """Return an amount, which has no sign, with about three digits."""
    if not np.isfinite(value):
        return UNDEFINED
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
