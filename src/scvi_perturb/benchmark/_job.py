"""One trial and all that is to be judged in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scvi_perturb.benchmark._judge import judge, judge_replicate
from scvi_perturb.benchmark._quiet import quiet
from scvi_perturb.benchmark._trial import Trial

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi_perturb.benchmark._record import Record
    from scvi_perturb.benchmark._study import Job

__all__ = ["records_of"]


def records_of(job: Job) -> Iterator[Record]:
    """Make the trial of a job and yield the record of each of its methods."""
    with quiet():
        trial = Trial.make(job.task, seed=job.seed, fold=job.fold)
        if job.replicate:
            yield judge_replicate(trial)
        for method in job.methods:
            yield judge(trial, method)
