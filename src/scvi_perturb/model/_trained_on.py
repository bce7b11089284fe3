"""What every training asks for and leaves behind: cells by part, where it was, how far that is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scvi_perturb._constants import CONDITION_KEY, CONTEXT_KEY
from scvi_perturb.model._base import PerturbationModel
from scvi_perturb.model._checks import digest
from scvi_perturb.model._library import library_shifts
from scvi_perturb.model._novelty import UNKNOWN, Place, novelty

if TYPE_CHECKING:
    from scvi_perturb.data import ScreenReader, Split
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
    from scvi_perturb.model._result import Plan

__all__ = ["Parts", "TrainedOn"]


class Parts(NamedTuple):
    """Indices of the cells that train, validate, and are held out."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


class TrainedOn(PerturbationModel):
    """What models remember of the cells that they were trained on."""

    #: Codes of condition and context with training cells.
    trained_pairs_: list[tuple[int, int]]

    def _parts(self, split: Split | None, n_cells: int, seed: int) -> Parts:
        if split is not None:
            split.check(self._plain_adata())
            return Parts(*(np.array(p) for p in (split.train, split.validation, split.test)))
        order = np.random.default_rng(seed).permutation(n_cells)
        n_validation = n_cells // 10
        return Parts(np.sort(order[n_validation:]), np.sort(order[:n_validation]), order[:0])

    def _describe_run(self, parts: Parts, settings: dict[str, Any]) -> dict[str, Any]:
        """Return what makes a run the same as another, for its folder."""
        arguments = {k: v for k, v in self.init_params_["non_kwargs"].items() if k != "registry"}
        return {
            "cells": self._cells_digest(),
            "training cells": digest(parts.train),
            "validation cells": digest(parts.validation),
            "model": {key: str(value) for key, value in arguments.items()},
            "settings": {key: str(value) for key, value in settings.items()},
        }

    def _remember_pairs(self, codes: dict[str, np.ndarray], train: np.ndarray) -> None:
        """Remember which conditions were trained on in which contexts."""
        trained = np.stack([codes[CONDITION_KEY][train], codes[CONTEXT_KEY][train]], axis=1)
        self.trained_pairs_ = [(int(c), int(x)) for c, x in np.unique(trained, axis=0)]

    def _remember(self, reader: ScreenReader, parts: Parts, split: Split | None, seed: int) -> None:
        """Remember a training that has ended."""
        self.train_indices, self.validation_indices = parts.train, parts.validation
        self.test_indices = parts.test
        if not self._screen.real_values:
            sizes = reader.library_sizes()
            self.library_shifts_ = library_shifts(reader.codes, sizes, parts.train)
        self._after_training(reader, parts.train)
        self.is_trained_ = True
        self.trained_on_ = {
            "n_cells": len(parts.train),
            "n_genes": len(self._screen.genes),
            "seed": seed,
            "split": "random" if split is None else split.kind,
            "split_seed": seed if split is None else split.seed,
            "data_hash": "" if split is None else split.data_hash,
            "cells_hash": self._cells_digest(),
        }

    def _after_training(self, reader: ScreenReader, train: np.ndarray) -> None:
        """Remember what a kind of model needs of the training cells."""

    def _novelty(self, request: Request, cells: Reference, plan: Plan) -> np.ndarray:
        columns = self._screen.context_columns
        labels = cells.labels.reindex(columns=list(columns)).fillna(UNKNOWN).to_numpy(dtype=object)
        asked, row = [], []
        for i, condition in enumerate(request.conditions):
            used = labels[np.unique(plan.reference[plan.row == i])]
            for column, label in request.where(i).items():
                used[:, columns.index(column)] = label
            contexts = sorted({tuple(map(str, context)) for context in used})
            asked += [Place(condition, context) for context in contexts]
            row += [i] * len(contexts)
        return np.bincount(row, weights=self._novelty_at(asked)) / np.bincount(row)

    def _novelty_at(self, asked: list[Place]) -> np.ndarray:
        """Return how far each condition in a context is from what was trained on, in [0, 1]."""
        trained = [
            Place(self._screen.table.conditions[code], self._screen.contexts[context])
            for code, context in self.trained_pairs_
            if code != 0
        ]
        return novelty(asked, trained, self._vocabulary.features)
