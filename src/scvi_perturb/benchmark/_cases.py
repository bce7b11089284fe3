"""The held-out conditions of a trial: what is asked, and what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._case import Case
from scvi_perturb.benchmark._panels import with_panels
from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.benchmark._training import Training
from scvi_perturb.benchmark._truths import CellTruths, Described, effect_truth
from scvi_perturb.data._annotation import read_annotation

if TYPE_CHECKING:
    from anndata import AnnData

    from scvi_perturb.benchmark._task import Task
    from scvi_perturb.data import Split
    from scvi_perturb.data._annotation import Annotation
    from scvi_perturb.data._condition import Condition
    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.metrics import Space

__all__ = ["held_out_cases"]


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
    genes = _gene_names(task, adata)
    values = matrix_of(adata, task.layer)
    cells = CellTruths(task, visible, space, seed) if task.values == "counts" else None
    cases = []
    for g, row, place in zip(asked, rows, places, strict=True):
        condition, context = _of_group(annotation, g)
        name, about = _described(task, condition, context)
        about |= {"n_cells": len(row)} | training.distances(condition, tuple(context.values()))
        told = Described(
            name=name,
            own_genes=tuple(np.flatnonzero(genes.isin(condition.names)).tolist()),
            centre=training.centre(tuple(context.values())),
        )
        truth, replicate, more = (
            effect_truth(values[row], told)
            if cells is None
            else cells.make(values, row, context, told)
        )
        cases.append(Case(name, truth, replicate, about | more, place))
    _check_names([case.name for case in cases])
    return requests, with_panels(cases, by_context=cells is not None)


def _gene_names(task: Task, adata: AnnData) -> pd.Index:
    """Return the names by which perturbations call genes, in the order of the screen."""
    if task.gene_names is None:
        return pd.Index(adata.var_names.astype(str))
    if task.gene_names not in adata.var:
        msg = f"var has no column {task.gene_names!r}; it has {sorted(map(str, adata.var))}."
        raise SchemaError(msg)
    return pd.Index(adata.var[task.gene_names].astype(str))


def _check_names(names: list[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"Held-out conditions have the same name: {twice[:3]}; tell them apart by a column."
        raise SchemaError(msg)


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
    if task.keys.kind:
        parts.append("+".join(part.kind for part in condition.components))
    name = " | ".join([*parts, *context.values()])
    return name, {"perturbation": label, "context": ", ".join(context.values())}
