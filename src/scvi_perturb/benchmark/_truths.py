"""Measured conditions as what predictions are compared with."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict

import numpy as np

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.data._annotation import read_annotation
from scvi_perturb.metrics import Comparison, Population, Truth, pearson_delta
from scvi_perturb.metrics._structure import chosen_genes

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark._task import Task
    from scvi_perturb.metrics import Matrix, Space

__all__ = ["CellTruths", "Described", "effect_truth"]


class Described(TypedDict):
    """What is known of a condition besides its cells; as in `Truth`."""

    name: str
    own_genes: tuple[int, ...]
    centre: NDArray[np.float64]


#: Cells from which both halves of a condition have a variance.
_TO_HALVE = 4


def effect_truth(
    values: Matrix, about: Described
) -> tuple[Truth | None, Comparison | None, dict[str, float]]:
    """Return a condition that is known by its change alone: the mean of the rows given."""
    effect = chosen_genes(values).mean(axis=0)
    nothing = Population(np.zeros_like(effect))
    truth = Truth(Population(effect), nothing, **about)
    return truth, None, {"effect": float(np.linalg.norm(effect)), "agreement": float("nan")}


class CellTruths:
    """Conditions that are known by their cells, with the visible controls of their context."""

    def __init__(self, task: Task, visible: AnnData, space: Space | None, seed: int) -> None:
        self._task, self._visible, self._space, self._seed = task, visible, space, seed
        self._annotation = read_annotation(visible, task.keys, task.context_keys)
        self._controls: dict[int, tuple[Matrix, Population]] = {}

    def make(
        self,
        values: Matrix,
        rows: NDArray[np.int64],
        context: dict[str, str],
        about: Described,
    ) -> tuple[Truth | None, Comparison | None, dict[str, float]]:
        """Return the truth, a replicate of the experiment, and what is known of the effect.

        Parameters
        ----------
        values
            Counts of the whole screen.
        rows
            The held-out cells of this condition.
        context
            Its context.
        about
            What else the truth is told.
        """
        if len(rows) < 2:
            return None, None, {"effect": float("nan"), "agreement": float("nan")}
        rng = np.random.default_rng([self._seed, int(rows[0])])
        order = rng.permutation(rows)[: self._task.max_cells]
        counts, control = self._control(context)
        shared: dict[str, Any] = {"space": self._space, "seed": self._seed, **about}
        observed = _population(values[np.sort(order)])
        if observed is None:
            return None, None, {"effect": float("nan"), "agreement": float("nan")}
        truth = Truth(observed, control, **shared)
        kept = truth.kept
        squared = (observed.mean - control.mean) ** 2
        free = (squared - observed.mean_variance - control.mean_variance)[kept].sum()
        known = {"effect": float(np.sqrt(max(free, 0.0))), "agreement": float("nan")}
        if len(order) < _TO_HALVE:
            return truth, None, known
        (one, two), (again, twice) = (_halves(values, counts, order, rng) for _ in range(2))
        if one is None or two is None:
            return truth, None, known
        if again is not None and twice is not None:
            changes = [(h.treated.mean - h.control.mean)[kept] for h in (again, twice)]
            nothing = np.zeros_like(changes[0])
            known["agreement"] = pearson_delta(changes[0], changes[1], nothing)
        return truth, _replicate(one, two, shared), known

    def _control(self, context: dict[str, str]) -> tuple[Matrix, Population]:
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
            counts = matrix_of(self._visible, self._task.layer)[rows]
            self._controls[place] = counts, Population.from_counts(counts)
        return self._controls[place]


class _Half(NamedTuple):
    """Half of the cells of a condition, and half of the controls."""

    treated: Population
    control: Population


def _halves(
    values: Any,  # noqa: ANN401
    controls: Any,  # noqa: ANN401
    rows: NDArray[np.int64],
    rng: np.random.Generator,
) -> tuple[_Half | None, _Half | None]:
    """Return two halves of the experiment, each with its own controls."""
    parts = []
    treated = np.array_split(rng.permutation(rows), 2)
    untreated = np.array_split(rng.permutation(controls.shape[0]), 2)
    for own, other in zip(treated, untreated, strict=True):
        made = _population(values[np.sort(own)]), _population(controls[np.sort(other)])
        parts.append(None if made[0] is None or made[1] is None else _Half(made[0], made[1]))
    return parts[0], parts[1]


def _replicate(first: _Half, second: _Half, shared: dict[str, Any]) -> Comparison:
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
    return Comparison(predicted, Truth(second.treated, second.control, **shared))


def _population(counts: Any) -> Population | None:  # noqa: ANN401
    """Return a population; None where its cells have no spread: one cell holds all counts."""
    held = np.asarray(counts.sum(axis=1)).ravel() > 0
    return Population.from_counts(counts) if held.sum() >= 2 else None
