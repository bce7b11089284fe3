"""Names of perturbations, and what a model may be asked about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_perturb._errors import UnknownPerturbationError
from scvi_perturb.data import Component, Condition, ConditionArrays
from scvi_perturb.module import ConditionTensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scvi_perturb.data import ConditionTable
    from scvi_perturb.features import PerturbationFeatures

__all__ = ["Vocabulary"]


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids of components: those of the screen first, then those known by features alone.

    Attributes
    ----------
    table
        Conditions of the screen.
    features
        What is known of perturbations beyond the screen, or None.
    """

    table: ConditionTable
    features: PerturbationFeatures | None

    @property
    def names(self) -> tuple[str, ...]:
        """Name of every id."""
        featured = () if self.features is None else tuple(self.features.names)
        return (*(name for name, _ in self.table.components), *featured)

    def feature_tensors(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return values and mask of each modality, one row an id."""
        if self.features is None:
            return {}
        table = self.features.table(self.names)
        return {k: (torch.from_numpy(v), torch.from_numpy(m)) for k, (v, m) in table.items()}

    def tensors(self, conditions: Sequence[Condition], seen: np.ndarray) -> ConditionTensors:
        """Return conditions as tensors.

        Parameters
        ----------
        conditions
            What is asked for.
        seen
            Whether each id was trained on, `(n_ids,)`.

        Raises
        ------
        UnknownPerturbationError
            When a component was neither trained on nor has features.
        """
        n, m = len(conditions), max([len(c.components) for c in conditions] + [1])
        component, dose = np.zeros((n, m), dtype=np.int64), np.ones((n, m), dtype=np.float32)
        mask, time = np.zeros((n, m), dtype=bool), np.full(n, np.nan, dtype=np.float32)
        for i, condition in enumerate(conditions):
            for j, part in enumerate(condition.components):
                component[i, j] = self._id(part, seen)
                dose[i, j], mask[i, j] = part.dose, True
            if condition.time is not None:
                time[i] = condition.time
        return to_tensors(ConditionArrays(component, dose, mask, time))

    def known(self, seen: np.ndarray) -> list[str]:
        """Return the names that can be asked for."""
        trained = [name for (name, _), s in zip(self.table.components, seen, strict=False) if s]
        return sorted({*trained, *(() if self.features is None else self.features.names)})

    def id_of(self, name: str, seen: np.ndarray) -> int:
        """Return the id of a name, of its first kind where it has several."""
        kinds = [kind for known, kind in self.table.components if known == name]
        return self._id(Component(name, kind=kinds[0] if kinds else ""), seen)

    def _id(self, part: Component, seen: np.ndarray) -> int:
        pairs = self.table.components
        place = pairs.index((part.name, part.kind)) if (part.name, part.kind) in pairs else None
        featured = self.features is not None and part.name in self.features
        if place is not None and (seen[place] or featured):
            return place
        if featured:
            return len(pairs) + self.features.names.index(part.name)  # type: ignore[union-attr]
        raise UnknownPerturbationError(part.name, self.known(seen))


def to_tensors(arrays: ConditionArrays) -> ConditionTensors:
    """Return the conditions of a table as tensors; where there is no component, dose one."""
    dose = np.where(arrays.mask, arrays.dose, 1.0).astype(np.float32)
    return ConditionTensors(
        torch.from_numpy(arrays.component),
        torch.from_numpy(dose),
        torch.from_numpy(arrays.mask),
        torch.from_numpy(arrays.time),
    )


def reference_doses(table: ConditionTable, codes: Iterable[int], n_ids: int) -> torch.Tensor:
    """Return the median dose of each component over `codes`; the overall median for others."""
    doses: dict[tuple[str, str], list[float]] = {}
    for code in codes:
        for part in table.conditions[code].components:
            doses.setdefault((part.name, part.kind), []).append(part.dose)
    every = [d for own in doses.values() for d in own] or [1.0]
    result = np.full(n_ids, np.median(every), dtype=np.float32)
    for i, pair in enumerate(table.components):
        if pair in doses:
            result[i] = np.median(doses[pair])
    return torch.from_numpy(result)
