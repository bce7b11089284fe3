"""`scvi-perturb benchmark`: run a study from a file, and write what came of it."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from scvi_perturb._cluster import WorkerError
from scvi_perturb._files import write_table
from scvi_perturb.benchmark import REPLICATE, missing_jobs, read_study, run, write_report
from scvi_perturb.benchmark.runner import quiet
from scvi_perturb.cli._app import UsageError
from scvi_perturb.cli._screen import say
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

    from scvi_perturb.benchmark import Record, Results, Study, StudyFile
    from scvi_perturb.cli._app import BenchmarkOptions

#: Characters of a line where nobody looks on.
WIDE: Final = 150
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


@quiet()
def run_benchmark(path: Path, options: BenchmarkOptions, console: Console) -> int:
    """Run the study; return 1 when a method failed, else 0.

    Raises `UsageError`: When the study cannot be read or run. Raises `LeakError`: When a method has
    seen what it was asked to predict.
    """
    file = _overruled(read_study(path), options)
    study, out = file.study, file.out
    if out.exists() and not out.is_dir():
        msg = f"--out {out}: there is a file of this name; name a folder."
        raise UsageError(msg)
    total = sum(len(job.methods) + job.replicate for job in study.jobs())
    missing = missing_jobs(study, out, fresh=options.fresh)
    waiting = sum(len(job.methods) + job.replicate for job in missing)
    done = f"; {total - waiting} are there already" if waiting < total else ""
    say(
        console,
        f"{len(study.tasks)} tasks, {len(study.methods)} methods, {len(study.seeds)} seeds: "
        f"{total} results, replicates of the experiment included{done}",
    )
    with _progress(console, waiting) as tell, _foreseen():
        results = run(
            study,
            out,
            n_workers=file.workers,
            backend=options.backend,
            fresh=options.fresh,
            progress=tell,
        )
    return _finish(results, file, console)


def _overruled(file: StudyFile, options: BenchmarkOptions) -> StudyFile:
    """Return the study with what was given on the command line."""
    study = file.study
    if options.seeds is not None:
        study = replace(study, seeds=tuple(dict.fromkeys(options.seeds)))
    if options.max_folds is not None:
        study = replace(study, max_folds=options.max_folds)
    out, workers = options.out or file.out, options.workers or file.workers
    return replace(file, study=study, out=out, workers=workers)


@contextmanager
def _progress(console: Console, waiting: int) -> Iterator[Callable[[Record], None]]:
    """Yield what is called with each record: it moves a bar, or prints a line without one."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    count = 0
    met: set[tuple[str, str, str]] = set()
    with Progress(*columns, console=console, transient=True, disable=not waiting) as progress:
        bar = progress.add_task("starting", total=waiting)

        def tell(record: Record) -> None:
            nonlocal count
            count += 1
            where = f"{record.task}, seed {record.seed}, fold {record.fold}: {record.method}"
            progress.update(bar, advance=1, description=where)
            kind = (record.task, record.method, record.status)
            new = record.status != "ok" and kind not in met
            met.add(kind)
            if new or not console.is_terminal:
                message = f": {' '.join(record.message.split())}" if new else ""
                line = f"  {count}/{waiting} {where}, {record.status}{message}"
                say(progress.console, line)

        yield tell


@contextmanager
def _foreseen() -> Iterator[None]:
    """Turn what a machine lacks, and an interruption, into what is told in one line."""
    try:
        yield
    except (ImportError, WorkerError) as error:
        raise UsageError(str(error)) from error
    except BrokenProcessPool as error:
        msg = (
            "A process was ended from outside, most likely for want of memory; what was finished "
            "is kept. Run the same command with fewer --workers."
        )
        raise UsageError(msg) from error
    except KeyboardInterrupt as error:
        msg = "what was finished is kept; the same command goes on."
        raise KeyboardInterrupt(msg) from error


def _finish(results: Results, file: StudyFile, console: Console) -> int:
    """Write what came of it, print the table, and return the exit code."""
    out = file.out
    status = results.status()
    write_table(out / "status.csv", status)
    for line in _trouble(status):
        say(console, line)
    write_table(out / "scores.csv", results.frame())
    everything, clear = results.summary(), results.summary(clear=True)
    parts = [everything.assign(conditions="all"), clear.assign(conditions="clear effect")]
    summary = pd.concat([part for part in parts if len(part)], ignore_index=True)
    write_table(out / "summary.csv", summary)
    write_report(results, out / "report.html")
    # A file is not bound to the width of a screen.
    wide = console if console.is_terminal else Console(file=console.file, width=WIDE)
    for table in _study_tables(everything, clear, file.study, width=wide.width):
        wide.print(table)
    console.print(f"Results are in [bold]{out}[/]; begin with report.html.", soft_wrap=True)
    return 1 if (status["status"] == "failed").any() else 0


def _trouble(status: pd.DataFrame) -> Iterable[str]:
    """Yield a line for each task, method and status other than "ok", with the first message."""
    found = status[status["status"] != "ok"]
    if len(found):
        yield "Not scored everywhere"
    for (task, method, kind), part in found.groupby(["task", "method", "status"], sort=False):
        trials = f"{len(part)} trial{'s' if len(part) > 1 else ''}"
        message = " ".join(str(part["message"].iloc[0]).split())
        yield f"  {task}, {method}: {kind} in {trials}: {message}"


def number(value: float) -> str:
    """Return a number as tables show it."""
    if np.isnan(value):
        return _NOTHING
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def score_table(cells: pd.DataFrame, title: str, styles: Mapping[str, str]) -> Table:
    """Return a table of texts, methods by metrics, without methods of which nothing is known."""
    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    made.add_column("method", no_wrap=True)
    for name in cells:
        metric = METRICS[str(name)]
        says = {"higher": "high", "lower": "low", "nearer": f"near {metric.best:g}", "none": "-"}
        head = f"{metric.title}\n({says[metric.direction]})"
        made.add_column(head, justify="right", no_wrap=True)
    for method, row in cells.iterrows():
        if set(row) != {_NOTHING}:
            made.add_row(str(method), *row, style=styles.get(str(method)))
    return made


def _study_tables(
    everything: pd.DataFrame, clear: pd.DataFrame, study: Study, *, width: int
) -> Iterator[Table]:
    """Yield the tables of each task: the value of each metric, and its score between b and r.

    Conditions with a clear effect are shown where there are any. A table wider than a line of
    `width` characters is given in parts.
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
        text = [_cell(u, s) for u, s in zip(part["u"], part["s"], strict=True)]
        cells = part.assign(text=text).pivot(index="method", columns="metric", values="text")
        cells = cells.reindex(index=list(heads)).fillna(_NOTHING).rename(index=heads)
        styles = {
            heads[m]: _STYLES.get(r, "") for m, r in zip(part["method"], part["role"], strict=True)
        }
        names = [name for name in _PRINTED if name in cells]
        for start in range(0, len(names), most):
            yield score_table(
                cells[names[start : start + most]], title if start == 0 else "", styles
            )


def _cell(value: float, score: float) -> str:
    """Return the value and the score, which is not defined everywhere."""
    return number(value) if np.isnan(score) else f"{number(value)} ({score:.2f})"
