"""The response of each gene as a function of dose: the trivial answer for a dose not measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np

from scvi_perturb._errors import UnknownPerturbationError, check_choice
from scvi_perturb.predictors._lookup import here_or_mean, names_of_singles
from scvi_perturb.predictors._mean import MeanPredictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._profiles import Profile
    from scvi_perturb.predictors._requests import Context, Request

    #: Doses `(n,)` and changes `(n, n_genes)`.
    Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
    #: Name, kind and time.
    Key: TypeAlias = tuple[str, str, float | None]

__all__ = ["DoseLine"]

#: Points of the grid on which the half-maximal dose is searched.
_N_GRID = 81


class DoseLine(MeanPredictor):
    """Predict the change at a dose from a line or curve through the doses measured.

    Each component has a curve for each gene and context, through its changes measured alone, with
    the same kind and time. The context asked for is used or, where the component was not measured
    there, the mean of the predictions for its contexts. The changes of the components of a
    combination are summed.

    "log_linear" is the line of least squares in the logarithm of the dose. It goes on beyond the
    doses measured. "hill" is `E d / (d + k)`: zero without dose, `E` at most. `E` is fitted for
    each gene and context by least squares, and the half-maximal dose `k` for each perturbation, one
    for all genes and contexts, by search on a grid of 81 values in even steps of its logarithm
    between a hundredth of the lowest and a hundred times the highest dose. Where there is one dose
    only, its change is the prediction at every dose, in both forms.

    Parameters
    ----------
    form
        "log_linear" or "hill".
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Hill, The possible effects of the aggregation of the molecules of haemoglobin on its
    dissociation curves, Journal of Physiology 1910; here with exponent 1.
    """

    name: ClassVar[str] = "dose_line"

    def __init__(
        self,
        form: Literal["log_linear", "hill"] = "log_linear",
        *,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        check_choice("form", form, ("log_linear", "hill"))
        self.form = form

    def _learn(self) -> None:
        super()._learn()
        points: dict[Key, dict[Context, dict[float, NDArray[np.float64]]]] = {}
        for condition, seen in self.deltas.items():
            if len(condition.components) != 1:
                continue
            part = condition.components[0]
            by_context = points.setdefault((part.name, part.kind, condition.time), {})
            for context, delta in seen.items():
                by_context.setdefault(context, {})[part.dose] = delta
        self._curves: dict[Key, dict[Context, Curve]] = {
            key: {context: _curve(found) for context, found in by_context.items()}
            for key, by_context in points.items()
        }
        #: Half-maximal dose of each perturbation with more than one dose in some context.
        self.half_doses: dict[Key, float] = {}
        if self.form == "hill":
            for key, curves in self._curves.items():
                used = [curve for curve in curves.values() if len(curve[0]) > 1]
                if used:
                    self.half_doses[key] = _half_dose(used)

    def _delta(self, request: Request) -> NDArray[np.float64]:
        total = np.zeros(len(self.profiles.var_names))
        for part in request.condition.components:
            key = (part.name, part.kind, request.condition.time)
            if key not in self._curves:
                raise UnknownPerturbationError(part.name, names_of_singles(self.deltas))
            at_dose = {
                context: self._at(part.dose, curve, self.half_doses.get(key, 1.0))
                for context, curve in self._curves[key].items()
            }
            total += here_or_mean(at_dose, request.context)
        return total

    def _at(self, dose: float, curve: Curve, half: float) -> NDArray[np.float64]:
        doses, changes = curve
        if len(doses) == 1:
            return changes[0]
        if self.form == "hill":
            return _ceiling(doses, changes, half) * dose / (dose + half)
        logs = np.log(doses)
        offsets = logs - logs.mean()
        slope = offsets @ changes / (offsets @ offsets)
        return changes.mean(axis=0) + slope * (np.log(dose) - logs.mean())


def _curve(points: dict[float, NDArray[np.float64]]) -> Curve:
    doses = sorted(points)
    return np.array(doses), np.stack([points[dose] for dose in doses])


def _ceiling(
    doses: NDArray[np.float64], changes: NDArray[np.float64], half: float
) -> NDArray[np.float64]:
    """Return the largest change of each gene, by least squares, `(n_genes,)`."""
    occupied = doses / (doses + half)
    return occupied @ changes / (occupied @ occupied)


def _half_dose(curves: Sequence[Curve]) -> float:
    """Return the half-maximal dose of least squared error over all genes and contexts."""
    lowest = min(doses[0] for doses, _ in curves)
    highest = max(doses[-1] for doses, _ in curves)
    grid = np.geomspace(lowest / 100, highest * 100, _N_GRID)
    errors = [sum(_error(curve, half) for curve in curves) for half in grid.tolist()]
    return float(grid[int(np.argmin(errors))])


def _error(curve: Curve, half: float) -> float:
    doses, changes = curve
    fitted = (doses / (doses + half))[:, None] * _ceiling(doses, changes, half)
    return float(((changes - fitted) ** 2).sum())
