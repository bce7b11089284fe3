"""Tables in Markdown: of anything, and of the results of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_perturb.benchmark._view._choosing import key_metrics, records_of_task, summary_of
from scvi_perturb.benchmark._view._glossary import HELD_OUT, SCORE, anchors
from scvi_perturb.benchmark._view._reading import UNDEFINED, direction, title_of, titles_of
from scvi_perturb.benchmark._view._sheet import sheet
from scvi_perturb.benchmark._view._status import troubles, versions_of
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    from scvi_perturb.benchmark._view._sheet import Cell
    from scvi_perturb.benchmark.results import Record, Results

__all__ = ["markdown_table", "markdown_tables"]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; columns after the first are aligned right.

    Parameters
    ----------
    header
        One word a column.
    rows
        Cells as they shall be read; "|" and ends of lines are made harmless.

    Raises
    ------
    ValueError
        If a row has not as many cells as the header.
    """
    wrong = [row for row in rows if len(row) != len(header)]
    if wrong:
        msg = f"A row has {len(wrong[0])} cells for {len(header)} columns: {list(wrong[0])[:3]}."
        raise ValueError(msg)
    line = ["---", *["---:"] * (len(header) - 1)]
    safe = [[_safe(cell) for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (safe[0], line, *safe[1:]))


def markdown_tables(results: Results, *, title: str = "Leaderboard") -> str:
    """Return the key metrics of every task in Markdown, with what the numbers mean.

    Parameters
    ----------
    results
        From `run`, or of a folder.
    title
        Heading of the page.

    Returns
    -------
    A page: for each task a heading, the note, a table of means and one of cells; the same again
    for conditions with a clear effect, where not all have one. Each cell has the metric and its
    95 % interval, and below it the score between the best trivial prediction and the replicate.
    Then the metrics.

    Raises
    ------
    SchemaError
        If there are no results.
    """
    records, titles = results.records(), titles_of(results)
    summary, clear = (summary_of(results, records, clear=clear) for clear in (False, True))
    notes = {} if results.study is None else {t.name: t.note for t in results.study.tasks}
    parts = [f"# {_plain(title)}", "", SCORE, "", _LEGEND, "", f"{versions_of(records)}."]
    shown: dict[str, None] = {}
    for task in dict.fromkeys(record.task for record in records):
        mine = records_of_task(records, task)
        parts += ["", f"## {_plain(title_of(task, titles))}", "", *_said(mine, notes.get(task, ""))]
        if task in set(summary["task"]):
            keys = key_metrics(summary, task)
            shown |= dict.fromkeys(keys)
            parts += _task_tables(summary, task, keys, titles)
            n_clear = _n_conditions(clear, task)
            if 0 < n_clear < _n_conditions(summary, task):
                parts += ["", f"### Clear effects: {n_clear} conditions"]
                parts += _task_tables(clear, task, keys, titles)
        told = troubles(mine, titles)
        parts += [""] * bool(told) + [f"- {_plain(one)}" for one in told]
    rows = [
        [METRICS[m].title, anchors(m), METRICS[m].units or UNDEFINED, METRICS[m].paper]
        for m in shown
    ]
    if rows:
        parts += [
            "",
            "## Metrics",
            "",
            markdown_table(["metric", "reading", "units", "paper"], rows),
        ]
    return "\n".join([*parts, ""])


_LEGEND = (
    "In bold: no method is better, the replicate left out. \\*: the best trivial prediction of "
    "this metric; where a value is the better the nearer it is to the best one, that is chosen by "
    "the distances of single conditions. In brackets: 95 % intervals. n: number of conditions, "
    "where a method was judged on fewer than others."
)


def _said(records: Sequence[Record], note: str) -> list[str]:
    split = records[0].provenance.get("split", {})
    n_conditions = len({c["condition"] for record in records for c in record.conditions})
    n_seeds = len({record.seed for record in records})
    held_out = HELD_OUT.get(split.get("kind", ""), "")
    counted = f"{n_conditions} conditions and contexts, {n_seeds} seed{'s' if n_seeds > 1 else ''}."
    return [
        f"Held out: {held_out} {counted}".replace("  ", " "),
        *(["", _plain(note)] if note else []),
    ]


def _task_tables(
    summary: pd.DataFrame, task: str, metrics: Sequence[str], titles: Mapping[str, str]
) -> list[str]:
    """Return the table of means and that of cells, as paragraphs."""
    there = set(summary.loc[summary["task"] == task, "metric"])
    parts: list[str] = []
    for of_means in (True, False):
        keys = [m for m in metrics if (METRICS[m].needs == "means") == of_means and m in there]
        if keys:
            parts += ["", _task_table(summary, task, keys, titles)]
    return parts


def _n_conditions(summary: pd.DataFrame, task: str) -> int:
    counts = summary.loc[summary["task"] == task, "n_conditions"]
    return int(counts.max()) if len(counts) else 0


def _task_table(
    summary: pd.DataFrame, task: str, metrics: Sequence[str], titles: Mapping[str, str]
) -> str:
    header = ["method", *(f"{METRICS[m].title} ({direction(METRICS[m])})" for m in metrics)]
    rows = [
        [_plain(line.title), *(_cell(cell) for cell in line.cells)]
        for line in sheet(summary, task, metrics, titles)
        if any(line.cells)
    ]
    return markdown_table(header, rows)


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return UNDEFINED
    value = f"**{cell.value}**" if cell.best else cell.value
    value += "\\*" if cell.opponent else ""
    value += f" ({cell.interval})" if cell.interval else ""
    if cell.score:
        value += f"<br>s {cell.score}"
        value += f" ({cell.score_interval})" if cell.score_interval else ""
    return value + (f"<br>n {cell.fewer}" if cell.fewer else "")


def _safe(text: str) -> str:
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|")


def _plain(text: str) -> str:
    """Return text without markup of HTML, which pages in Markdown would pass on."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
