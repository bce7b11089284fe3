"""Trials in several processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
from typing import TYPE_CHECKING

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._job import records_of
from scvi_perturb.benchmark._record import Record

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from scvi_perturb.benchmark._study import Job

__all__ = ["check_sendable", "records_by_processes"]

#: Seconds between looks at whether the parent is alive.
_LOOK_EVERY = 2.0


def records_by_processes(jobs: Sequence[Job], folder: Path, n_workers: int) -> Iterator[Record]:
    """Yield the records of jobs as they are finished; each process writes its own to `folder`.

    A job is handed out when a process is free, so that after an error or an interruption only those
    that run are waited for.
    """
    import torch

    threads = max(1, torch.get_num_threads() // n_workers)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        n_workers, context, initializer=_begin, initargs=(threads, os.getpid())
    ) as pool:
        left = iter(jobs)
        running = {pool.submit(_write_records, job, folder) for job in islice(left, n_workers)}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            paths = [path for one in done for path in one.result()]
            running |= {pool.submit(_write_records, job, folder) for job in islice(left, len(done))}
            yield from map(Record.read, paths)


def check_sendable(jobs: Sequence[Job]) -> None:
    """Raise unless jobs can be sent to another process.

    Raises
    ------
    SchemaError
        Naming the task.
    """
    for job in jobs:
        try:
            pickle.dumps(job)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            msg = (
                f"Task {job.task.name!r} or one of its methods cannot be sent to another process: "
                f"{error}. Give functions of a module, not lambdas or local ones, or n_workers=1."
            )
            raise SchemaError(msg) from None


def _write_records(job: Job, folder: Path) -> list[Path]:
    return [record.write(folder) for record in records_of(job)]


def _begin(threads: int, parent: int) -> None:
    """Give a process its share of the cores, and let it end with the one that started it."""
    import torch
    from threadpoolctl import threadpool_limits

    torch.set_num_threads(threads)
    threadpool_limits(threads)
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this process when its parent is gone: killed, it cannot say so."""
    while os.getppid() == parent:
        time.sleep(_LOOK_EVERY)
    os._exit(1)
