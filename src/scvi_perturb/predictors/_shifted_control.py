"""Control cells, each moved by the predicted mean change: the trivial prediction of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from scipy import sparse

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._normalize import log_normalize_cells
from scvi_perturb.predictors._context_mean import ContextMean
from scvi_perturb.predictors._from_controls import FromControls
from scvi_perturb.predictors._mean import UNITS, MeanPredictor

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.predictors._cell_source import Population
    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._protocol import Conditions

__all__ = ["ShiftedControl"]


class ShiftedControl(FromControls):
    """Predict cells: control cells in log space, plus the predicted mean change, clipped at 0.

    All cells move alike, so spread and zeros are those of control cells (or of the clipping). A
    claim about predicted *cells* counts where it beats this with the same mean. Cells are
    log-normalised, dense float32, and not counts.

    Parameters
    ----------
    mean
        Predictor of the change; `ContextMean(profile="cell_mean")` if None. Its `profile` should
        be "cell_mean": the change is added to the log of single cells. With `NoChange` the
        control cells come back as they are.
    """

    name: ClassVar[str] = "shifted_control"

    def __init__(self, mean: MeanPredictor | None = None) -> None:
        super().__init__(ContextMean(profile="cell_mean") if mean is None else mean)

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the mean of the shifted cells of each condition.

        Clipping moves it away from the control's mean plus the change. Parameters, result and
        errors are those of `MeanPredictor.predict`.
        """
        answer, populations = self._populations(conditions, reference)
        for i, population in enumerate(populations):
            control = log_normalize_cells(population.counts)
            base = np.asarray(control.mean(axis=0)).ravel()
            answer.X[i] = _shift(control, population.change).mean(axis=0)
            answer.layers["lfc"][i] = answer.X[i] - base
        answer.uns[UNS_KEY] = self._provenance()
        return answer

    @property
    def _about(self) -> tuple[str, str, Profile]:
        return f"{self.name}({self.mean.name})", UNITS, self.mean.profile

    def _cells(
        self,
        population: Population,
        drawn: NDArray[np.intp],
        rng: np.random.Generator,
    ) -> NDArray[np.float32]:
        return _shift(log_normalize_cells(population.counts[drawn]), population.change)


def _shift(control: Any, change: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: ANN401
    dense = control.toarray() if sparse.issparse(control) else np.asarray(control)
    return np.maximum(dense + change, 0.0).astype(np.float32)
