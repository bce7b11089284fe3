"""Tables in Markdown: of anything, and of the results of a study."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from scvi_perturb._checks import checked
from scvi_perturb.benchmark.report._tables import glossary, read_sections, versions_of
from scvi_perturb.benchmark.report._words import HELD_OUT, SCORE, UNDEFINED, counted
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.benchmark.report._tables import ScoreEntry, TaskSection
    from scvi_perturb.benchmark.results import Results

_LEGEND: Final = (
    "In bold: no method is better, the replicate left out. \\*: the best trivial prediction of "
    "this metric; where a value is the better the nearer it is to the best one, that is chosen by "
    "the distances of single conditions. In brackets: 95 % intervals. n: number of conditions, "
    "where a method was judged on fewer than others."
)


@checked
def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; columns after the first are aligned right.

    `header`: One word a column. `rows`: Cells as they shall be read; "|" and ends of lines are made
    harmless. Raises `ValueError`: If a row has not as many cells as the header.
    """
    wrong = [row for row in rows if len(row) != len(header)]
    if wrong:
        msg = f"A row has {len(wrong[0])} cells for {len(header)} columns: {list(wrong[0])[:3]}."
        raise ValueError(msg)
    line = ["---", *["---:"] * (len(header) - 1)]
    safe = [[_safe(cell) for cell in row] for row in (header, *rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (safe[0], line, *safe[1:]))


@checked
def markdown_tables(results: Results, *, title: str = "Leaderboard") -> str:
    """Return the key metrics of every task in Markdown, with an explanation of the numbers.

    `results`: From `run`, or of a folder. `title`: Heading of the page. Returns a page: for each
    task a heading, the note, a table of means and one of cells; the same again for conditions with
    a clear effect, where not all have one. Each cell has the metric and its 95 % interval, and
    below it the score between the best trivial prediction and the replicate. Then the metrics.
    Raises `SchemaError`: If there are no results.
    """
    sections = read_sections(results)
    versions = versions_of(record for section in sections for record in section.records)
    parts = [f"# {_plain(title)}", SCORE, _LEGEND, f"{versions}."]
    for section in sections:
        parts += _task(section)
    keys = dict.fromkeys(metric for section in sections for metric in section.keys)
    if keys:
        table = glossary(keys)[["metric", "reading", "units", "paper"]]
        parts += ["## Metrics", markdown_table([*map(str, table)], table.to_numpy().tolist())]
    return "\n\n".join(parts) + "\n"


def _task(section: TaskSection) -> list[str]:
    """Return the paragraphs of a task."""
    kind = section.records[0].provenance.get("split", {}).get("kind", "")
    n_seeds = len({record.seed for record in section.records})
    numbers = f"{len(section.conditions)} conditions and contexts, {counted(n_seeds, 'seed')}."
    parts = [
        f"## {_plain(section.title)}",
        " ".join(["Held out:", *filter(None, [HELD_OUT.get(kind)]), numbers]),
        _plain(section.note),
        *_score_tables(section, clear=False),
    ]
    if 0 < section.n_clear < section.n_conditions:
        parts.append(f"### Clear effects: {section.n_clear} conditions")
        parts += _score_tables(section, clear=True)
    parts.append("\n".join(f"- {_plain(line)}" for line in section.troubles()))
    return [part for part in parts if part]


def _score_tables(section: TaskSection, *, clear: bool) -> list[str]:
    """Return the table of means and that of cells; methods without an entry are left out."""
    made = []
    for of_means in (True, False):
        metrics = [m for m in section.keys if (METRICS[m].needs == "means") == of_means]
        table = section.scores(metrics, clear=clear)
        rows = [
            [_plain(row.title), *map(_cell, row.entries)] for row in table.rows if any(row.entries)
        ]
        made.append(markdown_table(table.header, rows) if rows else "")
    return made


def _cell(entry: ScoreEntry | None) -> str:
    if entry is None:
        return UNDEFINED
    value = f"**{entry.value}**" if entry.best else entry.value
    value += "\\*" if entry.opponent else ""
    value += f" ({entry.interval})" if entry.interval else ""
    if entry.score:
        value += f"<br>s {entry.score}"
        value += f" ({entry.score_interval})" if entry.score_interval else ""
    return value + (f"<br>n {entry.fewer}" if entry.fewer else "")


def _safe(text: str) -> str:
    return " ".join(text.split()).replace("\\|", "|").replace("|", "\\|")


def _plain(text: str) -> str:
    """Return text without markup of HTML, which pages in Markdown would pass on."""
    return text.replace("&", "&amp;").replace("<", "&lt;")
