"""A trial: one fold of a task with one seed. What methods may see, and what answers them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Self

import numpy as np

from scvi_perturb.benchmark._cases import held_out_cases
from scvi_perturb.benchmark._prints import prints
from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.benchmark._visible import annotation_of, bare, visible_part
from scvi_perturb.metrics import Space, log_normalize

if TYPE_CHECKING:
    import pandas as pd
    from anndata import AnnData

    from scvi_perturb.benchmark._case import Case
    from scvi_perturb.benchmark._task import Task
    from scvi_perturb.data import Split
    from scvi_perturb.features import PerturbationFeatures

__all__ = ["Trial"]

_MOST_FOR_SPACE = 10_000


@dataclass(frozen=True)
class Trial:
    """One fold of a task with one seed.

    Parameters
    ----------
    task, seed, fold
        What it is a trial of.
    split
        Split of the whole screen.
    visible, visible_split
        The cells that may be seen: not one held-out cell is in them. Methods are fitted on these.
    requests
        What methods are asked for: one row a held-out condition in a context.
    cases
        What answers each row: a truth, and a replicate of the experiment.
    answers
        The held-out cells, for the judge alone.
    features
        What is known of perturbations beforehand.
    """

    task: Task
    seed: int
    fold: int
    split: Split
    visible: AnnData
    visible_split: Split
    requests: pd.DataFrame
    cases: tuple[Case, ...]
    answers: AnnData
    features: PerturbationFeatures | None

    @cached_property
    def visible_prints(self) -> set[bytes]:
        """Fingerprints of the visible cells."""
        return prints(log_normalize(matrix_of(self.visible, self.task.layer)))

    @classmethod
    def make(cls, task: Task, *, seed: int, fold: int) -> Self:
        """Load the screen, split it, and set apart what answers.

        Raises
        ------
        LeakError
            If a held-out condition is among what may be seen.
        SchemaError
            If the screen does not have what the task says.
        """
        adata = task.load()
        made = task.split(adata, seed=seed, fold=fold)
        made.leaks(adata)
        visible, visible_split = visible_part(adata, made, task.layer)
        space = None
        if task.values == "counts":
            space = _space(visible, task, seed)
        features = (
            None
            if task.features is None
            else task.features(annotation_of(adata, task.keys.perturbation))
        )
        requests, cases = held_out_cases(
            task, adata, made, visible, features=features, space=space, seed=seed
        )
        return cls(
            task=task,
            seed=seed,
            fold=fold,
            split=made,
            visible=visible,
            visible_split=visible_split,
            requests=requests,
            cases=cases,
            answers=bare(adata, made, made.test, task.layer),
            features=features,
        )


def _space(visible: AnnData, task: Task, seed: int) -> Space:
    rows = np.arange(visible.n_obs)
    if len(rows) > _MOST_FOR_SPACE:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_FOR_SPACE, replace=False))
    return Space.fit(log_normalize(matrix_of(visible, task.layer)[rows]), seed=seed)
