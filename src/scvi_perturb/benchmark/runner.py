"""Run or resume a study in this process, in several processes, or on many machines."""

from __future__ import annotations

import logging
import os
import threading
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from pickle import PicklingError
from typing import TYPE_CHECKING, Final, Literal

from scvi_perturb._checks import checked
from scvi_perturb._cluster import by_ray
from scvi_perturb._core import SchemaError
from scvi_perturb.benchmark._evaluation import score_method, score_replicate
from scvi_perturb.benchmark.methods import REPLICATE
from scvi_perturb.benchmark.results import Record, Results, fingerprint, record_path
from scvi_perturb.benchmark.trial import Trial

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from scvi_perturb.benchmark.methods import Method
    from scvi_perturb.benchmark.study import Job, Study

#: Seconds between looks at whether the parent is alive.
_LOOK_EVERY: Final = 2.0
#: Packages that tell programmers what users need not know.
_LOUD: Final = ("lightning.fabric", "lightning.pytorch", "scvi", "scvi_perturb")


@checked
def run(
    study: Study,
    out: str | Path,
    *,
    n_workers: int = 1,
    backend: Literal["processes", "ray"] = "processes",
    fresh: bool = False,
    progress: Callable[[Record], None] | None = None,
) -> Results:
    """Run every method of a study on every task that it applies to.

    Each score is written as soon as it is known. What is in `out` already, and was made by the
    same definitions and version, is not made again, save what failed.

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
        "processes" of this machine, by joblib; "ray": tasks on a cluster that ray is connected to
        (extra `scale`), results written by this process.
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
        If a held-out condition can be seen, or held-out cells are in a prediction: the run fails.
    SchemaError
        If a task or a method cannot be sent to another process, or a screen lacks what its task
        says.
    ImportError
        If ray is asked for and is not installed.
    WorkerError
        If a process of the cluster dies three times with the same trial.
    """
    folder = Path(out)
    jobs = missing_jobs(study, folder, fresh=fresh)
    if backend == "ray":
        made = _records_by_ray(jobs, folder)
    elif n_workers > 1:
        made = _records_by_processes(jobs, folder, n_workers)
    else:
        made = (record for job in jobs for record in _written(job, folder))
    for record in made:
        if progress is not None:
            progress(record)
    return Results(folder, study)


@checked
def missing_jobs(study: Study, out: str | Path, *, fresh: bool = False) -> list[Job]:
    """Return the jobs of a study that are not done yet.

    That is what is not there, was made by other definitions, or failed.

    Parameters
    ----------
    study, out, fresh
        As in `run`.
    """
    found = (_missing(job, Path(out)) for job in study.jobs())
    return list(study.jobs()) if fresh else [job for job in found if job is not None]


def _missing(job: Job, folder: Path) -> Job | None:
    """Return what of a job is still to be done."""

    def done(name: str, method: Method | None) -> bool:
        path = record_path(folder, job.task.name, name, job.seed, job.fold)
        if not path.exists():
            return False
        record = Record.read(path)
        mark = fingerprint(job.task, method, job.seed, job.fold)
        return record.fingerprint == mark and record.status != "failed"

    methods = tuple(method for method in job.methods if not done(method.name, method))
    replicate = job.replicate and not done(REPLICATE, None)
    return replace(job, methods=methods, replicate=replicate) if methods or replicate else None


def _records_of(job: Job) -> Iterator[Record]:
    """Make the trial of a job and yield the record of each of its methods."""
    with quiet():
        trial = Trial.make(job.task, seed=job.seed, fold=job.fold)
        if job.replicate:
            yield score_replicate(trial)
        for method in job.methods:
            yield score_method(trial, method)


def _written(job: Job, folder: Path) -> Iterator[Record]:
    """Yield the records of a job, each written as soon as it is known."""
    for record in _records_of(job):
        record.write(folder)
        yield record


def _records_by_processes(jobs: Sequence[Job], folder: Path, n_workers: int) -> Iterator[Record]:
    """Yield the records of jobs as they are finished; each process writes its own.

    A job is handed out when a process is free.
    """
    import torch
    from joblib import Parallel, delayed, parallel_config

    _check_sendable(jobs)
    threads = max(1, torch.get_num_threads() // n_workers)
    with parallel_config("loky", inner_max_num_threads=threads):
        parallel = Parallel(
            n_workers, batch_size=1, pre_dispatch=n_workers, return_as="generator_unordered"
        )
    for records in parallel(delayed(_in_process)(job, folder) for job in jobs):
        yield from records


def _in_process(job: Job, folder: Path) -> list[Record]:
    _end_with_parent()
    return list(_written(job, folder))


@cache
def _end_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it cannot say so."""
    threading.Thread(target=_watch, args=(os.getppid(),), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)


def _records_by_ray(jobs: Sequence[Job], folder: Path) -> Iterator[Record]:
    """Yield the records of jobs as a cluster finishes them, written by this process."""
    _check_sendable(jobs)
    names = [f"task {job.task.name}, seed {job.seed}, fold {job.fold}" for job in jobs]
    for _, records in by_ray(lambda job, _: list(_records_of(job)), jobs, names=names):
        for record in records:
            record.write(folder)
            yield record


def _check_sendable(jobs: Sequence[Job]) -> None:
    """Raise unless jobs can be sent to another process, naming the task."""
    import cloudpickle

    for job in jobs:
        try:
            cloudpickle.dumps(job)
        except (PicklingError, AttributeError, TypeError) as error:
            msg = (
                f"Task {job.task.name!r} or one of its methods cannot be sent to another process: "
                f"{error}. Give functions that hold nothing open, no file and no lock, or "
                "n_workers=1."
            )
            raise SchemaError(msg) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Show only errors inside the block; what users need is raised or recorded."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
