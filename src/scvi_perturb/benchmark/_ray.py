"""Trials as tasks of a ray cluster."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from scvi_perturb.benchmark._job import records_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scvi_perturb.benchmark._record import Record
    from scvi_perturb.benchmark._study import Job

__all__ = ["records_by_ray"]


def records_by_ray(jobs: Sequence[Job]) -> Iterator[Record]:
    """Yield the records of jobs as the cluster finishes them.

    A cluster that the process is connected to is used; without one, ray starts on this machine.

    Raises
    ------
    ImportError
        If ray is not installed.
    """
    try:
        import ray
    except ImportError:
        msg = "Running on a cluster needs ray; install it with `pip install 'scvi-perturb[scale]'`."
        raise ImportError(msg) from None
    if not ray.is_initialized():
        ray.init(include_dashboard=False, logging_level=logging.ERROR)
    remote = ray.remote(_records)
    waiting = [remote.remote(job) for job in jobs]
    while waiting:
        done, waiting = ray.wait(waiting, num_returns=1)
        for result in ray.get(done):
            yield from result


def _records(job: Job) -> list[Record]:
    return list(records_of(job))
