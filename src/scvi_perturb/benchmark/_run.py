"""Run a study: in this process, in several, or on many machines; go on where it stopped."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from scvi_perturb._errors import check_choice
from scvi_perturb.benchmark._job import records_of
from scvi_perturb.benchmark._method import REPLICATE
from scvi_perturb.benchmark._processes import check_sendable, records_by_processes
from scvi_perturb.benchmark._ray import records_by_ray
from scvi_perturb.benchmark._record import Record, fingerprint, record_path
from scvi_perturb.benchmark._results import Results

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi_perturb.benchmark._method import Method
    from scvi_perturb.benchmark._study import Job, Study

    Progress = Callable[[Record], None]

__all__ = ["missing_jobs", "run"]


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
    jobs = missing_jobs(study, folder, fresh=fresh)
    tell = progress or (lambda record: None)
    if backend == "ray" or n_workers > 1:
        check_sendable(jobs)
    if backend == "processes" and n_workers > 1:
        for record in records_by_processes(jobs, folder, n_workers):
            tell(record)
        return Results(folder, study)
    made = records_by_ray(jobs) if backend == "ray" else chain.from_iterable(map(records_of, jobs))
    for record in made:
        record.write(folder)
        tell(record)
    return Results(folder, study)


def missing_jobs(study: Study, out: str | Path, *, fresh: bool = False) -> list[Job]:
    """Return what of a study is still to be done.

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
