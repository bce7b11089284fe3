"""The held-out conditions of a trial: the requests and the measurements."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from scvi_perturb._core import SchemaError
from scvi_perturb.benchmark.task import matrix_of
from scvi_perturb.data.fields import read_annotation
from scvi_perturb.metrics import (
    CellPopulation,
    Comparison,
    GroundTruth,
    Panel,
    chosen_genes,
    pearson_delta,
)
from scvi_perturb.predictors.baselines import ContextMean

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark.task import Task
    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.metrics import Matrix, Space

#: Cells from which both halves of a condition have a variance.
_TO_HALVE: Final = 4


@dataclass(frozen=True)
class HeldOutCondition:
    """One held-out condition in one context.

    `name`: The condition and its context. `truth`: The condition as it was measured; None if it has
    too few cells to be scored. `replicate`: One half of its cells as the prediction of the other
    half; None without cells. `about`: What readers group conditions by: `perturbation`, `context`,
    `n_cells`, `n_seen` (components of the condition measured alone in training), `effect` (size of
    the true change, freed of noise), `agreement` (Pearson correlation of the changes of two halves
    of its cells, each against a half of the controls), `feature_distance` (mean over its components
    of the distance to the nearest training perturbation, see `PerturbationFeatures.nearest`; 0 for
    a trained one), `context_distance` (Euclidean, of its control profile to the nearest of a
    context with training perturbations). `rows`: Its cells among those of `Trial.held_out_cells`.
    """

    name: str
    truth: GroundTruth | None
    replicate: Comparison | None
    about: dict[str, Any]
    rows: NDArray[np.intp]

    @property
    def n_cells(self) -> int:
        """Number of real cells that are compared, and so of cells to predict."""
        cells = None if self.truth is None else self.truth.observed.cells
        return 0 if cells is None else int(cells.shape[0])


#: A truth, a replicate of the experiment, and what is known of the effect.
_Measured: TypeAlias = tuple[GroundTruth | None, Comparison | None, dict[str, float]]


def held_out_conditions(
    task: Task,
    adata: AnnData,
    split: Split,
    visible: AnnData,
    *,
    features: PerturbationFeatures | None,
    space: Space | None,
    seed: int,
) -> tuple[pd.DataFrame, tuple[HeldOutCondition, ...]]:
    """Return what is asked, one row a condition and context, and what was measured of each row.

    Raises `SchemaError`: If a context has no control cells, or nothing is held out.
    """
    annotation = read_annotation(adata, task.keys)
    group = annotation.group[split.test]
    asked = [int(g) for g in np.unique(group) if not annotation.groups["control"].iloc[g]]
    if not asked:
        msg = f"Task {task.name!r} holds out no condition but controls; choose another kind."
        raise SchemaError(msg)
    places = [np.flatnonzero(group == g) for g in asked]
    rows = [split.test[place] for place in places]
    columns = task.keys.obs_columns
    requests = adata.obs.iloc[[row[0] for row in rows]][columns].reset_index(drop=True)
    training = _TrainingEffects(task, visible, features)
    genes = _gene_names(task, adata)
    values = matrix_of(adata, task.keys.layer)
    cells = _CellTruths(task, visible, space, seed) if task.values == "counts" else None
    found = []
    for g, row, place in zip(asked, rows, places, strict=True):
        condition = annotation.conditions[g]
        context = annotation.contexts[int(annotation.groups["context"].iloc[g])]
        name, about = _described(task, condition, context)
        about |= {"n_cells": len(row)} | training.distances(condition, tuple(context.values()))
        known = {
            "name": name,
            "own_genes": tuple(np.flatnonzero(genes.isin(condition.names)).tolist()),
            "centre": training.centre(tuple(context.values())),
        }
        truth, replicate, more = (
            _effect_truth(values[row], known)
            if cells is None
            else cells.make(values, row, context, known)
        )
        found.append(HeldOutCondition(name, truth, replicate, about | more, place))
    names = [one.name for one in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        msg = f"Held-out conditions have the same name: {twice[:3]}; tell them apart by a column."
        raise SchemaError(msg)
    return requests, _with_panels(found, by_context=cells is not None)


def _gene_names(task: Task, adata: AnnData) -> pd.Index:
    """Return the names by which perturbations call genes, in the order of the screen."""
    if task.gene_names is None:
        return pd.Index(adata.var_names.astype(str))
    if task.gene_names not in adata.var:
        msg = f"var has no column {task.gene_names!r}; it has {sorted(map(str, adata.var))}."
        raise SchemaError(msg)
    return pd.Index(adata.var[task.gene_names].astype(str))


def _described(
    task: Task, condition: Condition, context: dict[str, str]
) -> tuple[str, dict[str, Any]]:
    """Return the name of a condition in its context, and both apart."""
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


class _TrainingEffects:
    """The changes from control of the visible cells, and how far a condition is from them."""

    def __init__(self, task: Task, visible: AnnData, features: PerturbationFeatures | None) -> None:
        learned = ContextMean(
            "perturbations", profile="pseudobulk" if task.values == "counts" else "effects"
        )
        learned.fit(visible, keys=task.keys)
        self._deltas, self._profiles = learned.deltas, learned.profiles
        self._features = features
        self._names = {name for condition in self._deltas for name in condition.names}
        self._alone = {c.names[0] for c in self._deltas if len(c.components) == 1}
        self._contexts = {own for seen in self._deltas.values() for own in seen}

    def centre(self, context: tuple[str, ...]) -> NDArray[np.float64]:
        """Return the mean change of training conditions, in the same context if there are any."""
        here = [seen[context] for seen in self._deltas.values() if context in seen]
        return np.mean(here or [d for s in self._deltas.values() for d in s.values()], axis=0)

    def distances(self, condition: Condition, context: tuple[str, ...]) -> dict[str, float]:
        """Return how far a condition is from training, see `HeldOutCondition.about`."""
        return {
            "n_seen": float(sum(name in self._alone for name in condition.names)),
            "feature_distance": float(np.mean([self._of_name(n) for n in condition.names])),
            "context_distance": self._of_context(context),
        }

    def _of_name(self, name: str) -> float:
        if name in self._names:
            return 0.0
        if self._features is None or name not in self._features:
            return float("nan")
        nearest = self._features.nearest(name, self._names, n=1)
        return nearest[0][1] if nearest else float("nan")

    def _of_context(self, context: tuple[str, ...]) -> float:
        if context in self._contexts or self._profiles.kind == "effects":
            return 0.0
        if not self._profiles.controls(context):
            return float("nan")
        own = self._profiles.control_profile(context)
        others = (self._profiles.control_profile(other) for other in self._contexts)
        return float(min(np.linalg.norm(own - other) for other in others))


def _effect_truth(values: Matrix, known: dict[str, Any]) -> _Measured:
    """Return a condition that is known by its change alone: the mean of the rows given."""
    effect = chosen_genes(values).mean(axis=0)
    truth = GroundTruth(CellPopulation(effect), CellPopulation(np.zeros_like(effect)), **known)
    return truth, None, {"effect": float(np.linalg.norm(effect)), "agreement": float("nan")}


class _CellTruths:
    """Conditions that are known by their cells, with the visible controls of their context."""

    def __init__(self, task: Task, visible: AnnData, space: Space | None, seed: int) -> None:
        self._task, self._visible, self._space, self._seed = task, visible, space, seed
        self._annotation = read_annotation(visible, task.keys)
        self._controls: dict[int, tuple[Matrix, CellPopulation]] = {}

    def make(
        self,
        values: Matrix,
        rows: NDArray[np.int64],
        context: dict[str, str],
        known: dict[str, Any],
    ) -> _Measured:
        """Return what was measured: held-out `rows` of the counts of the whole screen."""
        unknown = {"effect": float("nan"), "agreement": float("nan")}
        if len(rows) < 2:
            return None, None, unknown
        rng = np.random.default_rng([self._seed, int(rows[0])])
        order = rng.permutation(rows)[: self._task.max_cells]
        counts, control = self._control(context)
        shared: dict[str, Any] = {"space": self._space, "seed": self._seed, **known}
        observed = _population(values[np.sort(order)])
        if observed is None:
            return None, None, unknown
        truth = GroundTruth(observed, control, **shared)
        kept = truth.kept
        squared = (observed.mean - control.mean) ** 2
        free = (squared - observed.mean_variance - control.mean_variance)[kept].sum()
        about = unknown | {"effect": float(np.sqrt(max(free, 0.0)))}
        if len(order) < _TO_HALVE:
            return truth, None, about
        (one, two), (again, twice) = (_halves(values, counts, order, rng) for _ in range(2))
        if one is None or two is None:
            return truth, None, about
        if again is not None and twice is not None:
            changes = [(h.treated.mean - h.control.mean)[kept] for h in (again, twice)]
            nothing = np.zeros_like(changes[0])
            about["agreement"] = pearson_delta(changes[0], changes[1], nothing)
        return truth, _replicate(one, two, shared), about

    def _control(self, context: dict[str, str]) -> tuple[Matrix, CellPopulation]:
        """Return the visible control cells of a context."""
        known = self._annotation.contexts
        place = known.index(context) if context in known else -1
        if place not in self._controls:
            groups = self._annotation.groups
            wanted = np.flatnonzero(groups["control"] & (groups["context"] == place))
            rows = np.flatnonzero(np.isin(self._annotation.group, wanted))
            if len(rows) < _TO_HALVE:
                msg = (
                    f"Context {context} has {len(rows)} control cells that may be seen; a change "
                    f"from control needs at least {_TO_HALVE}. Drop this context from the screen, "
                    "or use other context keys."
                )
                raise SchemaError(msg)
            counts = matrix_of(self._visible, self._task.keys.layer)[rows]
            self._controls[place] = counts, CellPopulation.from_counts(counts)
        return self._controls[place]


class _HalfExperiment(NamedTuple):
    """Half of the cells of a condition, and half of the controls."""

    treated: CellPopulation
    control: CellPopulation


def _halves(
    values: Any,  # noqa: ANN401
    controls: Any,  # noqa: ANN401
    rows: NDArray[np.int64],
    rng: np.random.Generator,
) -> list[_HalfExperiment | None]:
    """Return two halves of the experiment, each with its own controls."""
    parts: list[_HalfExperiment | None] = []
    treated = np.array_split(rng.permutation(rows), 2)
    untreated = np.array_split(rng.permutation(controls.shape[0]), 2)
    for own, other in zip(treated, untreated, strict=True):
        first, second = _population(values[np.sort(own)]), _population(controls[np.sort(other)])
        parts.append(None if first is None or second is None else _HalfExperiment(first, second))
    return parts


def _replicate(
    first: _HalfExperiment, second: _HalfExperiment, shared: dict[str, Any]
) -> Comparison:
    """Return the experiment repeated: the change of one half as the prediction of the other's.

    Controls are halved too, so that their noise is not common to both changes.
    """
    moved = second.control.mean - first.control.mean
    noise = first.treated.mean_variance + first.control.mean_variance
    predicted = replace(
        first.treated,
        mean=first.treated.mean + moved,
        mean_variance=noise + second.control.mean_variance,
        is_real=True,
    )
    return Comparison(predicted, GroundTruth(second.treated, second.control, **shared))


def _population(counts: Any) -> CellPopulation | None:  # noqa: ANN401
    """Return a population; None where its cells have no spread: one cell holds all counts."""
    held = np.asarray(counts.sum(axis=1)).ravel() > 0
    return CellPopulation.from_counts(counts) if held.sum() >= 2 else None


def _with_panels(
    conditions: Sequence[HeldOutCondition], *, by_context: bool
) -> tuple[HeldOutCondition, ...]:
    """Return conditions whose truths know all conditions of their context, or all there are."""
    truths = [one.truth for one in conditions]
    halves = [None if one.replicate is None else one.replicate.truth for one in conditions]
    labels = [one.about["context"] if by_context else "" for one in conditions]
    return tuple(
        replace(
            one,
            truth=truth,
            replicate=None
            if half is None or one.replicate is None
            else replace(one.replicate, truth=half),
        )
        for one, truth, half in zip(
            conditions, _ranked(truths, labels), _ranked(halves, labels), strict=True
        )
    )


def _ranked(
    truths: Sequence[GroundTruth | None], labels: Sequence[str]
) -> list[GroundTruth | None]:
    """Return truths with the panel of those that have the same label, and their place in it."""
    found: list[GroundTruth | None] = list(truths)
    for label in dict.fromkeys(labels):
        members = [
            (i, truth)
            for i, (truth, own) in enumerate(zip(truths, labels, strict=True))
            if truth is not None and own == label
        ]
        if not members:
            continue
        changes = np.stack([t.observed.mean - t.control.mean for _, t in members])
        targeted = ~np.logical_and.reduce([truth.kept for _, truth in members])
        panel = Panel(changes, targeted)
        for place, (i, truth) in enumerate(members):
            found[i] = replace(truth, panel=panel, place=place)
    return found
