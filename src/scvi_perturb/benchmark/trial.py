"""A trial: one fold of a task with one seed, with the visible cells and the requests."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Final, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_perturb._checks import checked
from scvi_perturb._core import drawn_seed
from scvi_perturb.benchmark._held_out import held_out_conditions
from scvi_perturb.benchmark.task import matrix_of
from scvi_perturb.data.fields import data_hash
from scvi_perturb.data.split.record import Split
from scvi_perturb.metrics import Space, chosen_genes, log_normalize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from scvi_perturb.benchmark._held_out import HeldOutCondition
    from scvi_perturb.benchmark.task import Task
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.metrics import Matrix

_MOST_FOR_SPACE: Final = 10_000
#: Genes in which a cell must be non-zero before an equal one cannot be chance.
_LEAST_NONZERO: Final = 10
_DECIMALS: Final = 3
_CHUNK: Final = 4096


@checked
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
    conditions
        What was measured of each row: the truth, and a replicate of the experiment.
    held_out_cells
        The cells of these conditions, for scoring alone.
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
    conditions: tuple[HeldOutCondition, ...]
    held_out_cells: AnnData
    features: PerturbationFeatures | None

    @cached_property
    def visible_fingerprints(self) -> set[bytes]:
        """Fingerprints of the visible cells."""
        return cell_fingerprints(log_normalize(matrix_of(self.visible, self.task.keys.layer)))

    @classmethod
    def make(cls, task: Task, *, seed: int | None, fold: int, split: Split | None = None) -> Self:
        """Load the screen, split it, and set the held-out conditions apart.

        Parameters
        ----------
        task, seed, fold
            What it is a trial of.
        split
            The split of an earlier run, instead of the one that the task makes.

        Raises
        ------
        LeakError
            If a held-out condition is among what may be seen.
        SchemaError
            If the screen does not have what the task says.
        """
        adata = task.load()
        seed = drawn_seed(seed)
        made = task.split(adata, seed=seed, fold=fold) if split is None else split
        if split is not None:
            split.check(adata)
        made.leaks(adata)
        visible, visible_split = _visible_part(adata, made, task.keys.layer)
        features = None
        if task.features is not None:
            features = task.features(_annotation_alone(adata, task.keys.perturbation))
        requests, conditions = held_out_conditions(
            task,
            adata,
            made,
            visible,
            features=features,
            space=_space(visible, task, seed) if task.values == "counts" else None,
            seed=seed,
        )
        return cls(
            task=task,
            seed=seed,
            fold=fold,
            split=made,
            visible=visible,
            visible_split=visible_split,
            requests=requests,
            conditions=conditions,
            held_out_cells=_rows_alone(adata, made, made.test, task.keys.layer),
            features=features,
        )


def cell_fingerprints(cells: Matrix) -> set[bytes]:
    """Return a fingerprint of each log-normalised cell that has enough genes to be told apart."""
    found: set[bytes] = set()
    for start in range(0, cells.shape[0], _CHUNK):
        part = chosen_genes(cells[start : start + _CHUNK])
        rounded = np.round(part.astype(np.float32), _DECIMALS)
        unique = (rounded != 0).sum(axis=1) >= _LEAST_NONZERO
        found.update(blake2b(row.tobytes(), digest_size=16).digest() for row in rounded[unique])
    return found


def _space(visible: AnnData, task: Task, seed: int) -> Space:
    rows = np.arange(visible.n_obs)
    if len(rows) > _MOST_FOR_SPACE:
        rows = np.sort(np.random.default_rng(seed).choice(rows, _MOST_FOR_SPACE, replace=False))
    return Space.fit(log_normalize(matrix_of(visible, task.keys.layer)[rows]), seed=seed)


def _visible_part(adata: AnnData, split: Split, layer: str | None) -> tuple[AnnData, Split]:
    """Return the cells that are not held out, and the split of these.

    Nothing else of the screen is in it: the values named, the columns of conditions and contexts,
    and names. So a method cannot read what it is asked to predict, neither values nor numbers of
    cells, nor what was computed from them (`uns`, `varm`, other layers), whatever it does with
    the split.
    """
    seen = np.sort(np.concatenate([split.train, split.validation]))
    visible = _rows_alone(adata, split, seen, layer)
    for column in visible.obs.select_dtypes("category"):
        visible.obs[column] = visible.obs[column].cat.remove_unused_categories()
    made = Split(
        kind=split.kind,
        seed=split.seed,
        train=np.flatnonzero(np.isin(seen, split.train)),
        validation=np.flatnonzero(np.isin(seen, split.validation)),
        test=np.zeros(0, np.int64),
        held_out=tuple({**row, "n_cells": None} for row in split.held_out),
        parameters=split.parameters,
        data_hash=data_hash(visible, split.keys),
    )
    return visible, made


def _rows_alone(
    adata: AnnData, split: Split, rows: NDArray[np.int64], layer: str | None
) -> AnnData:
    """Return rows of a screen with the values, columns and names that a task is about."""
    values = matrix_of(adata, layer)[rows]
    made = AnnData(
        obs=adata.obs.iloc[rows][list(dict.fromkeys(split.keys.obs_columns))].copy(),
        var=pd.DataFrame(index=adata.var_names.astype(str)),
    )
    if layer is None:
        made.X = values
    else:
        made.layers[layer] = values
    return made


def _annotation_alone(adata: AnnData, perturbation_key: str) -> AnnData:
    """Return what may be known of perturbations beforehand: text, one row a perturbation.

    Columns of numbers, and those that differ between the cells of a perturbation, are measurements
    and are left out.
    """
    obs = adata.obs.select_dtypes(exclude="number")
    groups = obs.astype(str).groupby(obs[perturbation_key].astype(str), sort=True)
    kept = [name for name, n in groups.nunique().max().items() if n <= 1]
    table = groups[kept].first()
    return AnnData(obs=table.set_axis(table.index.astype(str)))
