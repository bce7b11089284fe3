"""Measured conditions as what predictions are compared with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._task import matrix_of
from scvi_perturb.data._annotation import read_annotation
from scvi_perturb.metrics import Comparison, Population, Truth, pearson_delta, pseudobulk
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
    panel: str
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
        control_counts, control = self._control(context)
        shared: dict[str, Any] = {
            "control": control,
            "space": self._space,
            "seed": self._seed,
            **about,
        }
        observed = Population.from_counts(values[np.sort(order)])
        squared = (observed.mean - control.mean) ** 2
        free = np.sum(squared - observed.mean_variance - control.mean_variance)
        effect = float(np.sqrt(max(free, 0.0)))
        truth = Truth(observed, **shared)
        if len(order) < _TO_HALVE:
            return truth, None, {"effect": effect, "agreement": float("nan")}
        first, second = (
            Population.from_counts(values[np.sort(half)]) for half in np.array_split(order, 2)
        )
        replicate = Comparison(first, Truth(second, **shared))
        halves = np.array_split(rng.permutation(control_counts.shape[0]), 2)
        one, two = (pseudobulk(control_counts[np.sort(half)]) for half in halves)
        changes = first.mean - one, second.mean - two
        agreement = pearson_delta(*changes, np.zeros_like(changes[0]))
        return truth, replicate, {"effect": effect, "agreement": agreement}

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
