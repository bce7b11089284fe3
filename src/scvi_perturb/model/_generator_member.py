"""The generator as a member of the stack: refits without what was left out, of both stages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._constants import CONDITION_KEY, CONTEXT_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from scvi_perturb.model._trained_on import Parts
    from scvi_perturb.model._two_stage import LatentModel
    from scvi_perturb.predictors._questions import Fold, Question
    from scvi_perturb.predictors._requests import Request

__all__ = ["GeneratorMember"]


@dataclass
class GeneratorMember:
    """Answers for the generator when the stack asks what it would have said.

    The representation has to be refitted too: an autoencoder that saw the cells decodes them nearly
    without error, and the generator would get all the weight. That is dear, so folds are joined to
    a few; the number of steps is that of the model itself.

    Parameters
    ----------
    make
        Returns a new model of these cells, with the same arguments.
    adata, parts
        Cells of training, and those that may be seen.
    model
        The model that the steps were chosen for.
    n_refits
        Refits at most; 0 takes no part.
    train_options
        For `train` of each refit.
    """

    make: Callable[[AnnData], LatentModel]
    adata: AnnData
    parts: Parts
    model: LatentModel
    n_refits: int
    train_options: dict[str, Any] = field(default_factory=dict)

    def left_out(
        self, question: Question, rows: Sequence[Request], folds: Sequence[Fold]
    ) -> list[np.ndarray] | None:
        """Return the changes of each fold's asked rows; None without refits."""
        del question
        if self.n_refits < 1:
            return None
        made: list[np.ndarray | None] = [None] * len(folds)
        n = min(self.n_refits, len(folds))
        for joined in (range(i, len(folds), n) for i in range(n)):  # large folds with small
            removed = {rows[i] for k in joined for i in folds[k].removed}
            asked = [rows[i] for k in joined for i in folds[k].asked]
            changes = self._refit(removed, asked)
            ends = np.cumsum([len(folds[k].asked) for k in joined])[:-1]
            for k, part in zip(joined, np.split(changes, ends), strict=True):
                made[k] = part
        return [part for part in made if part is not None]

    def _refit(self, removed: set[Request], asked: list[Request]) -> np.ndarray:
        """Return the changes that a model without some rows predicts for others."""
        screen = self.model._screen
        reader = self.model._reader(None)
        seen = np.sort(np.concatenate([self.parts.train, self.parts.validation]))
        of_condition, of_context = (reader.codes[key][seen] for key in (CONDITION_KEY, CONTEXT_KEY))
        gone = {(row.condition, row.context) for row in removed}
        pairs, place = np.unique([of_condition, of_context], axis=1, return_inverse=True)
        keep = [(screen.table.conditions[c], screen.contexts[x]) not in gone for c, x in pairs.T]
        cells = self.adata[seen[np.array(keep)[place.ravel()]]]
        cells = cells.to_memory() if cells.isbacked else cells.copy()
        cells.uns = {}  # nothing of how the screen itself is registered
        refit = self.make(cells)
        refit.train(**self.train_options)
        table = screen.table.frame([row.condition for row in asked])
        keys = screen.keys
        roles = {"perturbation": keys.perturbation, "dose": keys.dose, "time": keys.time,
                 "perturbation_type": keys.kind}  # fmt: skip
        frame = table.rename(columns={k: v for k, v in roles.items() if v is not None})
        frame = frame[[v for v in roles.values() if v is not None]].reset_index(drop=True)
        for i, column in enumerate(screen.context_columns):
            frame[column] = [row.context[i] for row in asked]
        changes: np.ndarray = refit.predict(frame, seed=0).layers["lfc"].astype(np.float64)
        return changes
