"""The report of a benchmark as one self-contained HTML page."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from scvi_perturb._checks import checked
from scvi_perturb._files import write_text
from scvi_perturb.benchmark.report import _figures, _tables, _words
from scvi_perturb.benchmark.report._words import counted
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from scvi_perturb.benchmark.report._figures import CalibrationLevel
    from scvi_perturb.benchmark.report._tables import ScoreTable, TaskSection
    from scvi_perturb.benchmark.results import Results

_CLEAR: Final = (
    "conditions with a clear effect: the changes of two halves of their cells correlate at least "
    "by 0.5"
)
METRICS_SECTION: Final = ("metrics", "Metrics")
#: Models whose changes of genes are drawn.
_MOST_MODELS: Final = 4
#: Dots an inch, and how many of them an inch of the page shows: sharp on dense screens.
_DOTS, _SHOWN = 120, 88


@dataclass(frozen=True, slots=True)
class Picture:
    """A figure as a picture inside the page; `words` say what it shows."""

    words: str
    width: int
    height: int
    png: str
    caption: str = ""


@checked
def write_report(results: Results, path: str | Path) -> Path:
    """Write an HTML page with the tables and figures of all tasks and the meaning of the metrics.

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
    sections = _tables.read_sections(results)
    tasks = [task_content(section) for section in sections]
    content = {
        "title": "Benchmark of perturbation-response models",
        "contents": [*((f"task-{task['name']}", task["title"]) for task in tasks), METRICS_SECTION],
        "facts": _facts(sections),
        "tasks": tasks,
        "glossary": _tables.glossary(dict.fromkeys(m for s in sections for m in s.metrics)),
    }
    return write_page(path, "benchmark.html.j2", content)


def write_page(path: str | Path, template: str, content: Mapping[str, Any]) -> Path:
    """Write a page by a template, with the words that all pages share; return its path."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    shared = {"score": _words.SCORE, "roles": _words.ROLES, "undefined": _words.UNDEFINED}
    page = Environment(
        loader=PackageLoader("scvi_perturb.benchmark.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    ).get_template(template)
    write_text(path, page.render(shared | dict(content)), make_folder=True)
    return Path(path)


def _facts(sections: Sequence[TaskSection]) -> list[str]:
    records = [record for section in sections for record in section.records]
    seeds = sorted({record.seed for record in records})
    methods = {record.method for record in records if record.role != "replicate"}
    n_conditions = sum(len(section.conditions) for section in sections)
    return [
        f"{counted(len(sections), 'task')}, {counted(len(methods), 'method')}, "
        f"{counted(n_conditions, 'held-out condition')}, {counted(len(seeds), 'seed')} "
        f"({', '.join(map(str, seeds))})",
        _tables.versions_of(records),
    ]


def task_content(section: TaskSection, *, brief: bool = False) -> dict[str, Any]:
    """Return what the template shows of a task; a task without scores has no tables of them.

    `brief`: Without changes, costs, and scores in the units of the metrics.
    """
    words, clear = _clear(section)
    others = [metric for metric in section.metrics if metric not in section.keys]
    return {
        "name": section.name,
        "title": section.title,
        "note": section.note,
        "facts": _held_out(section),
        "scores": section.scores(section.keys) if section.keys else None,
        "clear_words": words,
        "clear_scores": clear,
        "others": section.scores(others) if others else None,
        "costs": section.costs(),
        "troubles": section.troubles(),
        "pictures": _pictures(section, brief=brief),
    }


def _held_out(section: TaskSection) -> list[str]:
    kind = section.records[0].provenance.get("split", {}).get("kind", "not known")
    names = list(section.conditions)
    trials = {(record.seed, record.fold) for record in section.records}
    some = "; ".join(names[:5]) + ("; ..." if len(names) > 5 else "")
    lines = [
        f"Held out: {_words.HELD_OUT.get(kind, kind)}",
        f"{counted(len(names), 'condition')} in {counted(len(trials), 'trial')} "
        f"(folds and seeds): {some}",
    ]
    splits = [r.provenance["split"] for r in section.records if r.provenance.get("split")]
    if splits:
        train, test = (_range([s["n_cells"][part] for s in splits]) for part in ("train", "test"))
        lines.append(f"Rows of data: {train} to train on, {test} held out in a trial")
    return lines


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _clear(section: TaskSection) -> tuple[str, ScoreTable | None]:
    """Return words on conditions with a clear effect, and their table if they are not all."""
    agreements = [about.get("agreement") for about in section.conditions.values()]
    if all(a is None or a != a for a in agreements):  # noqa: PLR0124 - NaN
        return "", None
    if not set(section.keys) & set(section.clear["metric"]):
        return f"There are no {_CLEAR}.", None
    if section.n_clear == section.n_conditions:
        return f"All are {_CLEAR}.", None
    words = f"Only the {section.n_clear} of {section.n_conditions} {_CLEAR}"
    return words, section.scores(section.keys, clear=True)


def _pictures(section: TaskSection, *, brief: bool) -> dict[str, list[Picture]]:
    """Return the figures of a task; there are none of what is not known."""
    made: dict[str, list[Picture]] = {"changes": [], "cost": [], "calibration": []}
    if len(section.cost) and not brief:
        draw = partial(_figures.cost_dots, section.cost, **_named(section))
        size = (_figures.WIDTH, 2 * _figures.height(len(section.cost), 0))
        made["cost"] = [picture(draw, "Cost of methods", size, n_axes=2)]
    if section.keys:
        made["calibration"] = _calibration_pictures(section)
        made["changes"] = [] if brief else _change_pictures(section)
    return made | _metric_pictures(section, brief=brief)


def _metric_pictures(section: TaskSection, *, brief: bool) -> dict[str, list[Picture]]:
    """Return the scores of key metrics, and the values of those that have scores."""
    scores, values = [], []
    for metric in section.keys:
        table = _tables.one_metric(section.summary, section.name, metric)
        options = {"metric": metric, **_named(section)}
        title, size = METRICS[metric].title, (_figures.WIDTH, _figures.height(len(table)))
        draw = partial(_figures.score_bars, table, **options)
        scores.append(picture(draw, f"Scores of methods: {title}", size))
        # Without scores, `score_bars` draws the values.
        if not brief and table.loc[table["role"] != "replicate", "s"].notna().any():
            draw = partial(_figures.metric_values, table, **options)
            values.append(picture(draw, f"Values of methods: {title}", size))
    return {"scores": scores, "values": values}


def _change_pictures(section: TaskSection) -> list[Picture]:
    """Return predicted against measured changes: best models, best trivial, replicate."""
    table = _tables.one_metric(section.summary, section.name, section.keys[0])
    models = table.loc[table["role"] == "model", "method"].tolist()[:_MOST_MODELS]
    replicate = table.loc[table["role"] == "replicate", "method"]
    made = []
    for method in (*models, _tables.opponent(table).best_trivial, *replicate):
        if any(r.method == method and r.curves.get("observed") for r in section.records):
            draw = partial(
                _figures.change_scatter, section.records, method=method, **_named(section)
            )
            words = f"Changes of genes by {_words.title_of(method, section.titles)}"
            made.append(picture(draw, words, _figures.CHANGES_SIZE))
    return made


def _calibration_pictures(section: TaskSection) -> list[Picture]:
    """Return calibration at the level of cells and at that of effects, where they are known."""
    made = []
    levels: dict[CalibrationLevel, tuple[str, str]] = {
        "cell": ("pit", "cells"),
        "effect": ("effect_pit", "mean changes"),
    }
    for level, (curve, what) in levels.items():
        known = {record.method for record in section.records if record.curves.get(curve)}
        if known:
            draw = partial(
                _figures.calibration_curve, section.records, level=level, **_named(section)
            )
            made.append(
                picture(draw, f"Calibration of {what}", _figures.calibration_size(len(known)))
            )
    return made


def _named(section: TaskSection) -> dict[str, Any]:
    """Return what all figures are told of a task."""
    return {"task": section.name, "titles": section.titles}


def picture(
    draw: Callable[..., object],
    words: str,
    size: tuple[float, float],
    *,
    n_axes: int = 1,
    caption: str = "",
) -> Picture:
    """Draw on a figure that pyplot does not know, so that nothing stays open."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(n_axes, squeeze=False)[:, 0].tolist()
    draw(**({"ax": axes[0]} if n_axes == 1 else {"axes": axes}))
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS, pil_kwargs={"optimize": True})
    code = base64.b64encode(buffer.getvalue()).decode("ascii")
    width, height = (round(inches * _SHOWN) for inches in size)
    return Picture(words, width, height, code, caption)
