"""Control cells, each moved by the predicted mean change: the trivial prediction of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._errors import NotTrainedError
from scvi_perturb._normalize import log_normalize_cells
from scvi_perturb._version import __version__
from scvi_perturb.data._table import encode_obs
from scvi_perturb.predictors._cells import counts_of, seen_cells
from scvi_perturb.predictors._context_mean import ContextMean
from scvi_perturb.predictors._mean import UNITS, MeanPredictor
from scvi_perturb.predictors._reference import Reference
from scvi_perturb.predictors._requests import context_labels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data._keys import ConditionKeys
    from scvi_perturb.data._splits import Split
    from scvi_perturb.predictors._protocol import Conditions

__all__ = ["ShiftedControl"]


class ShiftedControl:
    """Predict cells: control cells in log space, plus the predicted mean change, clipped at 0.

    All cells move alike, so spread and zeros are those of control cells (or of the clipping). A
    claim about predicted *cells* counts where it beats this with the same mean.

    Parameters
    ----------
    mean
        Predictor of the change; `ContextMean(profile="cell_mean")` if None. Its `profile` should
        be "cell_mean": the change is added to the log of single cells. With `NoChange` the
        control cells come back as they are.
    """

    name: ClassVar[str] = "shifted_control"

    def __init__(self, mean: MeanPredictor | None = None) -> None:
        self.mean = ContextMean(profile="cell_mean") if mean is None else mean
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
        profiles = self.mean.profiles
        seen = seen_cells(adata, split)
        codes, _ = encode_obs(adata.obs.iloc[seen], profiles.keys)
        controls = seen[codes == 0]
        obs = adata.obs.iloc[controls]
        self._controls = Reference(
            counts_of(adata, layer)[controls],
            context_labels(obs, profiles.context_keys),
            obs.index,
        )
        return self

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the mean of the shifted cells of each condition.

        Clipping moves it away from the control's mean plus the change. Parameters, result and
        errors are those of `MeanPredictor.predict`.
        """
        answer, cells = self._shifted(conditions, reference)
        for i, (control, change, _) in enumerate(cells):
            base = np.asarray(control.mean(axis=0)).ravel()
            answer.X[i] = _shift(control, change).mean(axis=0)
            answer.layers["lfc"][i] = answer.X[i] - base
        answer.uns[UNS_KEY] = self._provenance()
        return answer

    def sample(
        self,
        conditions: Conditions,
        *,
        reference: AnnData | None = None,
        n_samples: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Return shifted control cells.

        Parameters
        ----------
        conditions, reference
            As in `predict`.
        n_samples
            Cells a condition: all control cells as often as whole rounds fit, and a random
            choice of them for the rest. None returns one for each control cell, in order.
        seed
            Seed of the draw; None draws anew each time.

        Returns
        -------
        AnnData: `X` log-normalised cells `(n, n_genes)` float32, not counts; `obs` the condition
        and context, `reference_cell` and `draw`, the number of the draw within its condition.

        Raises
        ------
        UnknownPerturbationError, SchemaError
            As `predict`.
        """
        if n_samples is not None and n_samples < 1:
            msg = f"n_samples={n_samples}; ask for at least 1 cell, or None for one each."
            raise ValueError(msg)
        rng = np.random.default_rng(seed)
        answer, cells = self._shifted(conditions, reference)
        parts, rows = [], []
        for i, (control, change, names) in enumerate(cells):
            drawn = _drawn(control.shape[0], n_samples, rng)
            parts.append(_shift(control[drawn], change))
            obs = answer.obs.iloc[np.full(len(drawn), i)].reset_index(drop=True)
            obs["reference_cell"] = names[drawn].to_numpy()
            obs["draw"] = np.arange(len(drawn))
            rows.append(obs)
        obs = pd.concat(rows, ignore_index=True)
        obs.index = obs.index.astype(str)
        made = AnnData(X=np.concatenate(parts), obs=obs, var=answer.var)
        made.uns[UNS_KEY] = self._provenance() | {"seed": "none" if seed is None else seed}
        return made

    def _shifted(
        self, conditions: Conditions, reference: AnnData | None
    ) -> tuple[AnnData, Iterator[tuple[Any, NDArray[np.float32], pd.Index]]]:
        """Return the mean's answer, and for each row control cells, change and cells' names."""
        if self._controls is None:
            msg = "ShiftedControl has not seen data; call `fit(adata, split)` first."
            raise NotTrainedError(msg)
        answer = self.mean.predict(conditions, reference=reference)
        profiles = self.mean.profiles
        held = self._controls if reference is None else Reference.read(reference, profiles)
        asked = context_labels(answer.obs, profiles.context_keys)
        rows = (held.rows(context) for context in asked)
        return answer, (
            (log_normalize_cells(held.counts[row]), change, held.names[row])
            for row, change in zip(rows, answer.layers["lfc"], strict=True)
        )

    def _provenance(self) -> dict[str, object]:
        return {
            "model": f"{self.name}({self.mean.name})",
            "version": __version__,
            "units": UNITS,
            "profile": self.mean.profile,
        }


def _drawn(n_cells: int, n_samples: int | None, rng: np.random.Generator) -> NDArray[np.intp]:
    if n_samples is None:
        return np.arange(n_cells)
    rounds = [rng.permutation(n_cells) for _ in range(-(-n_samples // n_cells))]
    return np.concatenate(rounds)[:n_samples]


def _shift(control: Any, change: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: ANN401
    dense = control.toarray() if sparse.issparse(control) else np.asarray(control)
    return np.maximum(dense + change, 0.0).astype(np.float32)
