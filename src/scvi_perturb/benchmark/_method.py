"""A method: what is compared on tasks, and to which it applies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi_perturb.benchmark._task import Task
    from scvi_perturb.data._splits import SplitKind
    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors import Predictor
    from scvi_perturb.predictors._profiles import Profile

__all__ = ["REPLICATE", "Method", "Role", "Setting"]

#: "mean": a trivial prediction of means; "cells": a trivial prediction of cells; "model": what is
#: judged; "replicate": the experiment repeated.
Role = Literal["mean", "cells", "model", "replicate"]

#: Name of the replicate of the experiment in results.
REPLICATE = "replicate"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a method may know before it sees the data.

    Parameters
    ----------
    kind, values
        Of the task.
    features
        What is known of perturbations beforehand, if anything is.
    seed
        Seed of the trial.
    """

    kind: SplitKind
    values: Literal["counts", "effects"]
    features: PerturbationFeatures | None
    seed: int

    @property
    def profile(self) -> Profile:
        """What the mean of a population is in this task."""
        return "effects" if self.values == "effects" else "pseudobulk"


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way to predict, by name.

    Parameters
    ----------
    name
        Name in code and files: letters, digits, "_" and "-".
    make
        Returns an unfitted predictor for a setting. For several processes it must be a function
        of a module, or a `functools.partial` of one.
    title
        Name in tables for readers; the name if empty.
    role
        What it counts as.
    values
        Kinds of tasks' values that it takes.
    kinds
        Kinds of splits that it answers; None answers all.
    needs_features
        Whether it needs features of perturbations.
    """

    name: str
    make: Callable[[Setting], Predictor]
    title: str = ""
    role: Role = "model"
    values: tuple[Literal["counts", "effects"], ...] = ("counts",)
    kinds: tuple[SplitKind, ...] | None = None
    needs_features: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            msg = f"Method name {self.name!r} must be of letters, digits, '_' and '-'."
            raise ValueError(msg)
        if self.name == REPLICATE:
            msg = f"{REPLICATE!r} is the name of the experiment repeated; choose another."
            raise ValueError(msg)
        object.__setattr__(self, "title", self.title or self.name.replace("_", " "))

    def applies(self, task: Task) -> bool:
        """Whether it can be asked about a task."""
        return (
            task.values in self.values
            and (self.kinds is None or task.kind in self.kinds)
            and not (self.needs_features and task.features is None)
        )
