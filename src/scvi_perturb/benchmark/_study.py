"""A study: which methods are compared on which tasks, with which seeds."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi_perturb.benchmark._method import Method
    from scvi_perturb.benchmark._task import Task

__all__ = ["Job", "Study"]


@dataclass(frozen=True, slots=True)
class Job:
    """One trial, with the methods that are to be judged in it."""

    task: Task
    seed: int
    fold: int
    methods: tuple[Method, ...]
    replicate: bool = True


@dataclass(frozen=True, kw_only=True)
class Study:
    """Tasks, methods and seeds; each method is asked about each task that it applies to.

    Parameters
    ----------
    tasks, methods
        What is compared on what; names must differ.
    seeds
        Seeds of splits and methods.
    max_folds
        At most this many folds of each task, for a quick look; None takes all.

    Raises
    ------
    ValueError
        If there is nothing to do, or names come twice.
    """

    tasks: tuple[Task, ...]
    methods: tuple[Method, ...]
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    max_folds: int | None = None

    def __post_init__(self) -> None:
        for what in ("tasks", "methods", "seeds"):
            object.__setattr__(self, what, tuple(getattr(self, what)))
            if not getattr(self, what):
                msg = f"The study has no {what}; give at least one."
                raise ValueError(msg)
        for what in ("tasks", "methods"):
            counts = Counter(one.name for one in getattr(self, what))
            twice = [name for name, n in counts.items() if n > 1]
            if twice:
                msg = f"Names of {what} come twice: {twice}; results are kept by name."
                raise ValueError(msg)

    def jobs(self) -> Iterator[Job]:
        """Yield every trial with its methods."""
        for task in self.tasks:
            methods = tuple(method for method in self.methods if method.applies(task))
            for seed in self.seeds:
                for fold in list(task.folds)[: self.max_folds]:
                    yield Job(task, seed, fold, methods, replicate=task.values == "counts")
