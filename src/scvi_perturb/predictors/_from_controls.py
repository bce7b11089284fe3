"""Predictions of cells that start from control cells and the mean of another predictor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np

from scvi_perturb._errors import NotTrainedError, SchemaError
from scvi_perturb.data._table import encode_obs
from scvi_perturb.predictors._cell_source import CellSource, Population
from scvi_perturb.predictors._cells import read_counts, seen_cells
from scvi_perturb.predictors._reference import Reference
from scvi_perturb.predictors._requests import context_labels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from scvi_perturb.data._keys import ConditionKeys
    from scvi_perturb.data._splits import Split
    from scvi_perturb.predictors._mean import MeanPredictor
    from scvi_perturb.predictors._profiles import TrainingProfiles
    from scvi_perturb.predictors._protocol import Conditions

__all__ = ["FromControls", "control_cells", "no_effects"]


class FromControls(CellSource):
    """Fits a mean and keeps the training control cells.

    Parameters
    ----------
    mean
        Predictor of the change.
    """

    def __init__(self, mean: MeanPredictor) -> None:
        no_effects(mean.profile, type(self).__name__)
        self.mean = mean
        self._controls: Reference | None = None

    def fit(
        self,
        adata: AnnData,
        split: Split | None = None,
        *,
        keys: ConditionKeys | None = None,
        context_keys: Sequence[str] = (),
        layer: str | None = None,
    ) -> Self:
        """Fit the mean and keep the training control cells; as `MeanPredictor.fit`."""
        self.mean.fit(adata, split, keys=keys, context_keys=context_keys, layer=layer)
        self._controls = control_cells(adata, split, self.mean.profiles)
        return self

    def _held(self) -> Reference:
        if self._controls is None:
            msg = f"{type(self).__name__} has not seen data; call `fit(adata, split)` first."
            raise NotTrainedError(msg)
        return self._controls

    def _populations(
        self, conditions: Conditions, reference: AnnData | None
    ) -> tuple[AnnData, Iterator[Population]]:
        held = self._held()
        answer = self.mean.predict(conditions, reference=reference)
        profiles = self.mean.profiles
        if reference is not None:
            held = Reference.read(reference, profiles)
        asked = context_labels(answer.obs, profiles.context_keys)
        rows = [held.rows(context) for context in asked]
        return answer, (
            Population(
                held.counts[row],
                held.names[row],
                n_controls=len(row),
                mean=np.array(answer.X[i]),
                change=np.array(answer.layers["lfc"][i]),
            )
            for i, row in enumerate(rows)
        )


def control_cells(adata: AnnData, split: Split | None, profiles: TrainingProfiles) -> Reference:
    """Return the control cells that may be seen, in memory."""
    seen = seen_cells(adata, split)
    codes, _ = encode_obs(adata.obs.iloc[seen], profiles.keys)
    controls = seen[codes == 0]
    obs = adata.obs.iloc[controls]
    return Reference(
        read_counts(adata, profiles.layer, controls),
        context_labels(obs, profiles.context_keys),
        obs.index,
    )


def no_effects(profile: str, who: str) -> None:
    """Raise unless a profile is one of cells.

    Raises
    ------
    SchemaError
        If it is "effects".
    """
    if profile == "effects":
        msg = (
            f'{who} predicts cells, but profile="effects" is for data that have no cells. Use '
            'profile="pseudobulk" or "cell_mean" and raw counts.'
        )
        raise SchemaError(msg)
