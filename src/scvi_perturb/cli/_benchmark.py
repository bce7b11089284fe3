"""`scvi-perturb benchmark`: run a study from a file, and write what came of it."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from scvi_perturb.benchmark import StudyFile, missing_jobs, read_study, run, write_report
from scvi_perturb.cli._benchmark_tables import score_tables, trouble_lines
from scvi_perturb.cli._options import BenchmarkOptions, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from scvi_perturb.benchmark import Record, Results, Study

__all__ = ["benchmark"]

#: Characters of a line where nobody looks on.
_WIDE: Final = 150
FILES: Final = {
    "report.html": "tables and figures, with how to read them",
    "summary.csv": "each metric beside the best trivial prediction and the replicate",
    "scores.csv": "every score of every condition",
    "status.csv": "what became of each method in each trial",
}


def benchmark(options: BenchmarkOptions, console: Console) -> int:
    """Run the study; return 1 when a method failed, else 0.

    Raises
    ------
    UsageError
        When the study cannot be read or run.
    LeakError
        When a method has seen what it was asked to predict.
    """
    file = _overruled(read_study(options.study), options)
    if file.out.exists() and not file.out.is_dir():
        msg = f"--out {file.out}: there is a file of this name; name a folder."
        raise UsageError(msg)
    waiting = _n_waiting(file.study, file.out, fresh=options.fresh)
    console.print(_story(file.study, waiting), highlight=False, markup=False, soft_wrap=True)
    with _told(console, waiting) as tell, _foreseen():
        results = run(
            file.study,
            file.out,
            n_workers=file.workers,
            backend=options.backend,
            fresh=options.fresh,
            progress=tell,
        )
    return _finish(results, file, console)


def _overruled(file: StudyFile, options: BenchmarkOptions) -> StudyFile:
    """Return the study with what was given on the command line."""
    seeds, max_folds = options.seeds, options.max_folds
    study = file.study
    if seeds is not None:
        study = replace(study, seeds=tuple(dict.fromkeys(seeds)))
    if max_folds is not None:
        study = replace(study, max_folds=max_folds)
    return replace(
        file, study=study, out=options.out or file.out, workers=options.workers or file.workers
    )


def _n_waiting(study: Study, out: Path, *, fresh: bool) -> int:
    """Return how many records are still to be made."""
    jobs = missing_jobs(study, out, fresh=fresh)
    return sum(len(job.methods) + job.replicate for job in jobs)


def _story(study: Study, waiting: int) -> str:
    total = sum(len(job.methods) + job.replicate for job in study.jobs())
    done = f"; {total - waiting} are there already" if waiting < total else ""
    return (
        f"{len(study.tasks)} tasks, {len(study.methods)} methods, {len(study.seeds)} seeds: "
        f"{total} results, replicates of the experiment included{done}"
    )


@contextmanager
def _told(console: Console, waiting: int) -> Iterator[Callable[[Record], None]]:
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
                progress.console.print(
                    f"  {count}/{waiting} {where}, {record.status}{message}",
                    highlight=False,
                    markup=False,
                    soft_wrap=True,
                )

        yield tell


@contextmanager
def _foreseen() -> Iterator[None]:
    """Turn what a machine lacks, and an interruption, into what is told in one line."""
    try:
        yield
    except ImportError as error:
        raise UsageError(str(error)) from error
    except BrokenProcessPool as error:
        msg = (
            "A process was ended from outside, most likely for want of memory; what was finished "
            "is kept. Run the same command with fewer --workers."
        )
        raise UsageError(msg) from error


def _finish(results: Results, file: StudyFile, console: Console) -> int:
    """Write what came of it, print the table, and return the exit code."""
    out = file.out
    status = results.status()
    status.to_csv(out / "status.csv", index=False)
    trouble = list(trouble_lines(status))
    for line in ["Not scored everywhere", *(f"  {one}" for one in trouble)] if trouble else ():
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    results.frame().to_csv(out / "scores.csv", index=False, float_format="%.6g")
    everything, clear = results.summary(), results.summary(clear=True)
    parts = [everything.assign(conditions="all"), clear.assign(conditions="clear effect")]
    summary = pd.concat([part for part in parts if len(part)], ignore_index=True)
    summary.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    write_report(results, out / "report.html")
    # A file is not bound to the width of a screen.
    wide = console if console.is_terminal else Console(file=console.file, width=_WIDE)
    for table in score_tables(everything, clear, file.study, width=wide.width):
        wide.print(table)
    console.print(f"Results are in [bold]{out}[/]; begin with report.html.", soft_wrap=True)
    return 1 if (status["status"] == "failed").any() else 0
