"""Search for hyperparameters and the scale of effects, on the rows that are tuned on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, TypeAlias

import numpy as np

from scvi_perturb.predictors._closure import closed
from scvi_perturb.predictors._condition_gp_outputs import Outputs
from scvi_perturb.predictors._condition_gp_points import Points
from scvi_perturb.predictors._condition_gp_scale import Scale, clearly_better
from scvi_perturb.predictors._condition_gp_signal import left_out, row_weights
from scvi_perturb.predictors._condition_gp_tune import fit, tuned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._condition_gp_kernel import ConditionKernel, Kinship
    from scvi_perturb.predictors._condition_gp_rows import Rows
    from scvi_perturb.predictors._condition_gp_signal import Tune
    from scvi_perturb.predictors._condition_gp_tune import Fitted

    Floats: TypeAlias = NDArray[np.float64]

__all__ = ["Search"]


@dataclass(frozen=True, slots=True)
class Search:
    """Rows to tune on, compared by a kernel.

    Parameters
    ----------
    rows
        All rows.
    chosen, members
        Those to tune on, and which of them are left out together.
    kinship
        The kernel between those, but for hyperparameters.
    tune
        What is made least.
    n_components
        See `Outputs.of`.
    """

    rows: Rows
    chosen: NDArray[np.intp]
    members: list[NDArray[np.intp]]
    kinship: Kinship
    tune: Tune
    n_components: int | None

    @classmethod
    def of(
        cls,
        rows: Rows,
        kernel: ConditionKernel,
        *,
        tune: Tune,
        n_components: int | None,
        n_tuning: int,
    ) -> Self:
        """Take at most `n_tuning` rows."""
        chosen, members = rows.tuning(n_tuning)
        points = Points.of([rows.requests[i] for i in chosen], rows.contexts)
        criterion: Tune = tune if len(members) > 1 else "marginal"
        return cls(rows, chosen, members, kernel.between(points, points), criterion, n_components)

    def best(self, pseudocounts: Sequence[float]) -> tuple[Scale, Outputs, Fitted]:
        """Return a scale, all rows on it, and the best fit to those tuned on.

        Hyperparameters are tuned on the first scale. Whether another is clearly better is asked
        with these kept; if so, they are tuned again on it.
        """
        first = Scale(pseudocounts[0])
        outputs = self._outputs(first)
        fitted = self._tuned(outputs)
        if len(pseudocounts) == 1 or len(self.members) < 2:
            return first, outputs, fitted
        weights = row_weights(outputs.subset(self.chosen), float(fitted.signal.scales.mean()))
        errors = {first: self._errors(first, outputs, fitted, weights)}
        others = {scale: self._outputs(scale) for scale in map(Scale, pseudocounts[1:])}
        for scale, found in others.items():
            again = fit(fitted.theta, self.kinship, found.subset(self.chosen),
                        members=self.members, tune=self.tune)  # fmt: skip
            errors[scale] = self._errors(scale, found, again, weights)
        best = clearly_better(errors)
        if best == first:
            return first, outputs, fitted
        return best, others[best], self._tuned(others[best])

    def _outputs(self, scale: Scale) -> Outputs:
        changes, variances = self.rows.on(scale)
        return Outputs.of(
            changes, variances, n_rows_each=self.rows.n_each, n_components=self.n_components
        )

    def _tuned(self, outputs: Outputs) -> Fitted:
        some = outputs.subset(self.chosen)
        return tuned(self.kinship, some, members=self.members, tune=self.tune)

    def _errors(self, scale: Scale, outputs: Outputs, fitted: Fitted, weights: Floats) -> Floats:
        """Return squared errors of profiles when a group is left out, `(n_groups,)`."""
        some, chosen = outputs.subset(self.chosen), self.chosen
        predicted = some.genes(
            some.values - left_out(fitted.spectrum, fitted.signal.ratios, self.members)
        )
        controls = self.rows.controls
        if controls is not None:
            predicted = scale.back(predicted, controls[chosen])
            if self.rows.are_shares:
                predicted = closed(predicted, controls[chosen])
        squared = weights * ((predicted - self.rows.changes[chosen]) ** 2).sum(axis=1)
        return np.array([squared[own].sum() for own in self.members])
