"""Run a study: in this process, in several, or on many machines; go on where it stopped."""

from __future__ import annotations

import multiprocessing
import pickle
import warnings
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scvi_perturb._errors import SchemaError, check_choice
from scvi_perturb.benchmark._judge import judge, judge_replicate
from scvi_perturb.benchmark._method import REPLICATE
from scvi_perturb.benchmark._record import Record, fingerprint, record_path
from scvi_perturb.benchmark._results import Results
from scvi_perturb.benchmark._trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scvi_perturb.benchmark._study import Job, Study

    Progress = Callable[[Record], None]

__all__ = ["run"]


def run(
    study: Study,
    out: str | Path,
    *,
    n_workers: int = 1,
    backend: Literal["processes", "ray"] = "processes",
    fresh: bool = False,
    progress: Progress | None = None,
) -> Results:
    """Judge every method of a study on every task that it applies to.

    Each score is written as soon as it is known. What is in `out` already, and was made by the
    same definitions and version, is not made again.

    Parameters
    ----------
    study
        What is compared on what.
    out
        Folder of results.
    n_workers
        Number of processes; each takes a trial at a time and its share of the cores. 1 runs in
        this process.
    backend
        "processes" of this machine; "ray": tasks on a cluster that ray is connected to (extra
        `scale`), results written by this process.
    fresh
        Make everything anew.
    progress
        Called with each new record.

    Returns
    -------
    The results, also those of earlier runs.

    Raises
    ------
    LeakError
        If a held-out condition can be seen, or held-out cells are in an answer: the run fails.
    SchemaError
        If a task or a method cannot be sent to another process, or a screen lacks what its task
        says.
    ImportError
        If ray is asked for and is not installed.
    """
    check_choice("backend", backend, ("processes", "ray"))
    folder = Path(out)
    jobs = [job for job in map(lambda job: _missing(job, folder, fresh), study.jobs()) if job]
    tell = progress or (lambda record: None)
    if backend == "ray":
        _check_sendable(jobs)
        from scvi_perturb.benchmark._ray import records_by_ray

        for record in records_by_ray(jobs):
            record.write(folder)
            tell(record)
    elif n_workers <= 1:
        for job in jobs:
            for record in records_of(job):
                record.write(folder)
                tell(record)
    else:
        _check_sendable(jobs)
        _run_processes(jobs, folder, n_workers, tell)
    return Results(folder, study)


def records_of(job: Job) -> Iterator[Record]:
    """Make the trial of a job and yield the record of each of its methods."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trial = Trial.make(job.task, seed=job.seed, fold=job.fold)
        if job.replicate:
            yield judge_replicate(trial)
        for method in job.methods:
            yield judge(trial, method)


def _missing(job: Job, folder: Path, fresh: bool) -> Job | None:  # noqa: FBT001
    """Return what of a job is still to be done."""

    def there(name: str, mark: str) -> bool:
        path = record_path(folder, job.task.name, name, job.seed, job.fold)
        return not fresh and path.exists() and Record.read(path).fingerprint == mark

    def mark(method: object) -> str:
        return fingerprint(job.task, method, job.seed, job.fold)  # type: ignore[arg-type]

    methods = tuple(m for m in job.methods if not there(m.name, mark(m)))
    replicate = job.replicate and not there(REPLICATE, mark(None))
    return replace(job, methods=methods, replicate=replicate) if methods or replicate else None


def _run_processes(jobs: Sequence[Job], folder: Path, n_workers: int, tell: Progress) -> None:
    import torch

    threads = max(1, torch.get_num_threads() // n_workers)
    context = multiprocessing.get_context("spawn")
    with ExitStack() as stack:
        pool = stack.enter_context(
            ProcessPoolExecutor(n_workers, context, initializer=_limit, initargs=(threads,))
        )
        stack.callback(pool.shutdown, cancel_futures=True)
        running = [pool.submit(_write_records, job, folder) for job in jobs]
        for done in as_completed(running):
            for path in done.result():
                tell(Record.read(path))


def _write_records(job: Job, folder: Path) -> list[Path]:
    return [record.write(folder) for record in records_of(job)]


def _limit(threads: int) -> None:
    """Give a process its share of the cores."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)


def _check_sendable(jobs: Sequence[Job]) -> None:
    for job in jobs:
        try:
            pickle.dumps(job)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            msg = (
                f"Task {job.task.name!r} or one of its methods cannot be sent to another process: "
                f"{error}. Give functions of a module, not lambdas or local ones, or n_workers=1."
            )
            raise SchemaError(msg) from None
