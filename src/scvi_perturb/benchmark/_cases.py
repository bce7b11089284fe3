"""The held-out conditions of a trial: what is asked, and what was measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.benchmark._training import Training
from scvi_perturb.benchmark._truths import CellTruths, Described, effect_truth
from scvi_perturb.data._annotation import read_annotation

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark._task import Task
    from scvi_perturb.data import Split
    from scvi_perturb.data._annotation import Annotation
    from scvi_perturb.data._condition import Condition
    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.metrics import Comparison, Space, Truth

__all__ = ["Case", "held_out_cases"]


@dataclass(frozen=True)
class Case:
    """One held-out condition in one context.

    Parameters
    ----------
    name
        The condition and its context.
    truth
        The condition as it was measured; None if it has too few cells to be scored.
    replicate
        One half of its cells as the prediction of the other half; None without cells.
    about
        What readers group conditions by: `perturbation`, `context`, `n_cells`, `n_seen`
        (components of the condition measured alone in training), `effect` (size of the true
        change, freed of noise), `agreement` (Pearson correlation of the changes of two halves of
        its cells, each against a half of the controls), `feature_distance` (mean over its
        components of the distance to the nearest training perturbation, see
        `PerturbationFeatures.nearest`; 0 for a trained one), `context_distance` (Euclidean, of
        its control profile to the nearest of a context with training perturbations).
    rows
        Its cells among those of `Trial.answers`.
    """

    name: str
    truth: Truth | None
    replicate: Comparison | None
    about: dict[str, Any]
    rows: NDArray[np.intp]

    @property
    def n_cells(self) -> int:
        """Number of real cells that are compared, and so of cells to predict."""
        cells = None if self.truth is None else self.truth.observed.cells
        return 0 if cells is None else int(cells.shape[0])


def held_out_cases(
    task: Task,
    adata: AnnData,
    split: Split,
    visible: AnnData,
    *,
    features: PerturbationFeatures | None,
    space: Space | None,
    seed: int,
) -> tuple[pd.DataFrame, tuple[Case, ...]]:
    """Return what is asked, one row a condition and context, and what answers each row.

    Raises
    ------
    SchemaError
        If a context has no control cells, or nothing is held out.
    """
    annotation = read_annotation(adata, task.keys, task.context_keys)
    group = annotation.group[split.test]
    asked = [int(g) for g in np.unique(group) if not annotation.groups["control"].iloc[g]]
    if not asked:
        msg = f"Task {task.name!r} holds out no condition but controls; choose another kind."
        raise SchemaError(msg)
    places = [np.flatnonzero(group == g) for g in asked]
    rows = [split.test[place] for place in places]
    columns = [*task.keys.columns.values(), *task.context_keys]
    requests = adata.obs.iloc[[row[0] for row in rows]][columns].reset_index(drop=True)
    training = Training(task, visible, features)
    genes = pd.Index(adata.var_names.astype(str))
    values = matrix_of(adata, task.layer)
    cells = CellTruths(task, visible, space, seed) if task.values == "counts" else None
    cases = []
    for g, row, place in zip(asked, rows, places, strict=True):
        condition, context = _of_group(annotation, g)
        name, about = _described(task, condition, context)
        about |= {"n_cells": len(row)} | training.distances(condition, tuple(context.values()))
        told = Described(
            name=name,
            panel=about["context"] if cells is not None else "",
            own_genes=tuple(np.flatnonzero(genes.isin(condition.names)).tolist()),
            centre=training.centre(tuple(context.values())),
        )
        truth, replicate, more = (
            effect_truth(values[row], told)
            if cells is None
            else cells.make(values, row, context, told)
        )
        cases.append(Case(name, truth, replicate, about | more, place))
    return requests, tuple(cases)


def _of_group(annotation: Annotation, group: int) -> tuple[Condition, dict[str, str]]:
    context = annotation.contexts[int(annotation.groups["context"].iloc[group])]
    return annotation.conditions[group], context


def _described(
    task: Task, condition: Condition, context: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    label = condition.format(task.keys.control, task.keys.separator)
    parts = [label]
    if task.keys.dose:
        parts.append("dose " + "+".join(f"{part.dose:g}" for part in condition.components))
    if task.keys.time and condition.time is not None:
        parts.append(f"time {condition.time:g}")
    name = " | ".join([*parts, *context.values()])
    return name, {"perturbation": label, "context": ", ".join(context.values())}
