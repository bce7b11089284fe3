"""What a benchmark says, for a reader, in one file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from scvi_perturb.benchmark._view import _report_figures as figures
from scvi_perturb.benchmark._view._choosing import key_metrics, records_of_task, summary_of
from scvi_perturb.benchmark._view._glossary import HELD_OUT, SCORE
from scvi_perturb.benchmark._view._html import bullets, element, folded, page, safe
from scvi_perturb.benchmark._view._reading import title_of, titles_of
from scvi_perturb.benchmark._view._report_tables import cost_table, glossary, metric_table
from scvi_perturb.benchmark._view._status import troubles, versions_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd

    from scvi_perturb.benchmark.results import Record, Results

__all__ = ["write_report"]

_TITLE: Final = "Benchmark of perturbation-response models"
_LEGEND: Final = (
    "Small print: 95 % interval, and the score s between the best trivial prediction (0) and the "
    "replicate (1). Bold: no method is better, the replicate left out; on a coloured ground: the "
    "best trivial prediction of this metric. Where a value is the better the nearer it is to the "
    "best one, that is chosen by the distances of single conditions."
)


@dataclass(frozen=True)
class _Content:
    """What was read from the results, once for all parts."""

    records: list[Record]
    summary: pd.DataFrame
    clear: pd.DataFrame
    cost: pd.DataFrame
    titles: dict[str, str]
    notes: dict[str, str]

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(record.task for record in self.records))

    def metrics(self, task: str) -> list[str]:
        """Return the metrics of a task: the key ones, then the others."""
        keys = key_metrics(self.summary, task)
        every = self.summary.loc[self.summary["task"] == task, "metric"]
        return list(dict.fromkeys([*keys, *every]))


def write_report(results: Results, path: str | Path) -> Path:
    """Write a page with the tables and figures of all tasks, and what the metrics mean.

    Parameters
    ----------
    results
        From `run`, or of a folder: without a study, tasks and methods go by their names.
    path
        Where the page is written, as HTML. It is one file: pictures are inside, and nothing is
        loaded when it is read.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    SchemaError
        If there are no results.
    """
    content = _read(results)
    metrics: dict[str, None] = {}
    parts = [_header(content)]
    for task in content.tasks:
        parts.append(_task(content, task))
        metrics |= dict.fromkeys(content.metrics(task))
    parts += ['<h2 id="metrics">Metrics</h2>', glossary(metrics)]
    written = Path(path)
    written.parent.mkdir(parents=True, exist_ok=True)
    written.write_text(page(_TITLE, "\n".join(parts)), encoding="utf-8")
    return written


def _read(results: Results) -> _Content:
    records = results.records()
    return _Content(
        records=records,
        summary=summary_of(results, records),
        clear=summary_of(results, records, clear=True),
        cost=results.cost(),
        titles=titles_of(results),
        notes={} if results.study is None else {t.name: t.note for t in results.study.tasks},
    )


def _header(content: _Content) -> str:
    records = content.records
    seeds = sorted({record.seed for record in records})
    conditions = {(r.task, c["condition"]) for r in records for c in r.conditions}
    methods = {r.method for r in records if r.role != "replicate"}
    facts = [
        f"{_count(len(content.tasks), 'task')}, {_count(len(methods), 'method')}, "
        f"{_count(len(conditions), 'held-out condition')}, {_count(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))})",
        versions_of(records),
    ]
    links = "".join(
        element("li", f'<a href="#task-{safe(task)}">{safe(title_of(task, content.titles))}</a>')
        for task in content.tasks
    )
    links += element("li", '<a href="#metrics">Metrics</a>')
    return "\n".join(
        [element("h1", safe(_TITLE)), bullets(facts), element("p", safe(SCORE)),
         element("ul", links)]
    )  # fmt: skip


def _task(content: _Content, task: str) -> str:
    records = records_of_task(content.records, task)
    parts = [f'<h2 id="task-{safe(task)}">{safe(title_of(task, content.titles))}</h2>']
    if content.notes.get(task):
        parts.append(element("p", safe(content.notes[task]), css="note"))
    parts.append(bullets(_held_out(records)))
    every = content.metrics(task)
    if every:
        parts.append(_scored(content, task, every, records))
    parts += ["<h3>Cost</h3>"] if (content.cost["task"] == task).any() else []
    parts.append(figures.cost_picture(content.cost, task, content.titles))
    parts.append(folded("Cost in numbers", cost_table(content.cost, task, content.titles)))
    told = troubles(records, content.titles)
    if told:
        parts += ["<h3>Methods that did not answer</h3>", bullets(told)]
    return "\n".join(part for part in parts if part)


def _scored(content: _Content, task: str, every: list[str], records: list[Record]) -> str:
    """Return the tables and figures of a task that has scores."""
    summary, titles = content.summary, content.titles
    keys = key_metrics(summary, task) or every[:8]
    rest = [metric for metric in every if metric not in keys]
    parts = [
        element("h3", "Methods by metrics"),
        metric_table(summary, task, keys, titles),
        element("p", safe(_LEGEND), css="minor"),
        _strata(content, task, keys, records),
        folded("All other metrics", metric_table(summary, task, rest, titles) if rest else ""),
        element("h3", "Between trivial and replicate"),
        figures.score_pictures(summary, task, keys, titles),
        folded("The same in the units of the metrics",
               figures.value_pictures(summary, task, keys, titles)),
    ]  # fmt: skip
    changes = figures.change_pictures(records, summary, task, keys[0], titles)
    if changes:
        parts += [element("h3", "Changes of the genes that change most"), changes]
    ranks = figures.calibration_pictures(records, task, titles)
    if ranks:
        parts += [element("h3", "Calibration"), ranks]
    return "\n".join(part for part in parts if part)


def _strata(content: _Content, task: str, keys: list[str], records: Sequence[Record]) -> str:
    """Return the table of conditions with a clear effect, where halves of cells tell it."""
    told = {c["condition"]: c.get("agreement") for r in records for c in r.conditions}
    known = [a for a in told.values() if a is not None and a == a]  # noqa: PLR0124 - not NaN
    if not known:
        return ""
    words = "conditions with a clear effect: the changes of two halves of their cells correlate "
    words += "at least by 0.5"
    part = content.clear[content.clear["task"] == task]
    there = [metric for metric in keys if metric in set(part["metric"])]
    if not there:
        return element("p", safe(f"There are no {words}."))
    most = int(part["n_conditions"].max())
    total = int(content.summary.loc[content.summary["task"] == task, "n_conditions"].max())
    if most == total:
        return element("p", safe(f"All are {words}."))
    title = f"Only the {most} of {total} {words}"
    return folded(title, metric_table(part, task, there, content.titles))


def _held_out(records: Sequence[Record]) -> list[str]:
    split = records[0].provenance.get("split", {})
    names = list(dict.fromkeys(c["condition"] for r in records for c in r.conditions))
    trials = {(record.seed, record.fold) for record in records}
    some = "; ".join(names[:5]) + ("; ..." if len(names) > 5 else "")
    lines = [
        f"Held out: {HELD_OUT.get(split.get('kind', ''), split.get('kind', 'not known'))}",
        f"{_count(len(names), 'condition')} in {_count(len(trials), 'trial')} "
        f"(folds and seeds): {some}",
    ]
    cells = [r.provenance["split"]["n_cells"] for r in records if r.provenance.get("split")]
    if cells:
        train, test = ([c[part] for c in cells] for part in ("train", "test"))
        lines.append(
            f"Rows of data: {_range(train)} to train on, {_range(test)} held out in a trial"
        )
    return lines


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
