"""Trivial predictors of the mean: no change, means, sums, dose lines, nearest perturbation."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data.condition import Condition
from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.predictors.profiles import (
    here_or_mean,
    measured_alone,
    measured_here,
    names_of_singles,
)
from scvi_perturb.similarity.kernels import Similarity, require_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Component
    from scvi_perturb.data.request import Context, RequestRow
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.profiles import Profile

    Curve: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64]]
    Key: TypeAlias = tuple[str, str, float | None]


@checked
class NoChange(MeanPredictor):
    """Predict the control of the same context, whatever was done to the cells.

    It needs to know nothing about a perturbation and so refuses none.

    Parameters
    ----------
    profile
        What the mean of a population is; see `MeanPredictor`.
    """

    name: ClassVar[str] = "no_change"

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
        return np.zeros(len(self.profiles.var_names))


@checked
class ContextMean(MeanPredictor):
    """Predict the control of the context plus a mean of changes seen in training.

    Parameters
    ----------
    over
        "contexts": the mean change of the same condition in the *other* contexts, each context
        counted once; the trivial answer for an unseen context. "perturbations": the mean change
        of all training conditions in the *same* context, each condition counted once; the trivial
        answer for an unseen perturbation. "all": the mean of all training changes, each condition
        in each context counted once.
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Ahlmann-Eltze, Huber and Anders, Deep-learning-based gene perturbation effect prediction does
    not yet outperform simple linear baselines, Nature Methods 2025.
    """

    name: ClassVar[str] = "context_mean"

    def __init__(
        self,
        over: Literal["contexts", "perturbations", "all"] = "contexts",
        *,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        self.over = over

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
        if self.over == "contexts":
            return self._over_contexts(request)
        if self.over == "all":
            return self.profiles.mean_change((None,) * len(self.profiles.keys.context))
        return self.profiles.mean_change(request.context)

    def _over_contexts(self, request: RequestRow) -> NDArray[np.float64]:
        seen = self.deltas.get(request.condition, {})
        label = str(request.condition)
        if not seen:
            raise UnknownPerturbationError(label, self.profiles.known_names())
        others = [delta for own, delta in seen.items() if own != request.context]
        if not others:
            msg = (
                f"{label!r} was measured in context {request.context} alone, so there is no other "
                "context to take its change from. Name the contexts in `keys`, or use "
                "`ContextMean('perturbations')` or `Additive`."
            )
            raise SchemaError(msg)
        return np.mean(others, axis=0)


@checked
class MatchingMean(MeanPredictor):
    """Predict the mean of the components' profiles, each measured alone in the context.

    A component that was not measured alone there, at its dose, kind and time, is replaced by the
    mean profile of all training conditions of the context, each counted once. A single
    perturbation that was never measured so gets that mean. Nothing is taken from other contexts.

    Asking for a context in which nothing was perturbed raises `SchemaError`.

    Parameters
    ----------
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Vinas Torne et al., Systema: a framework for evaluating genetic perturbation response
    prediction beyond systematic variation, Nature Biotechnology 2025.
    """

    name: ClassVar[str] = "matching_mean"

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
        parts = []
        for component in request.condition.components:
            seen = measured_alone(self.deltas, component, request.condition.time)
            here = measured_here(seen, request.context)
            parts.append(
                np.mean(here, axis=0) if here else self.profiles.mean_change(request.context)
            )
        return np.mean(parts, axis=0)


@checked
class Additive(MeanPredictor):
    """Predict the control plus the sum of the changes of each component measured alone.

    A component is looked up alone, with its own dose, kind and time: in the context asked for; if
    it was not measured there, its mean change over the other contexts is taken, each counted
    once. One that was measured alone nowhere is refused: there is no further fallback.

    Parameters
    ----------
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Ahlmann-Eltze, Huber and Anders, Deep-learning-based gene perturbation effect prediction does
    not yet outperform simple linear baselines, Nature Methods 2025.
    """

    name: ClassVar[str] = "additive"

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
        total = np.zeros(len(self.profiles.var_names))
        for component in request.condition.components:
            seen = measured_alone(self.deltas, component, request.condition.time)
            if not seen:
                alone = Condition((component,), time=request.condition.time)
                raise UnknownPerturbationError(str(alone), names_of_singles(self.deltas))
            total += here_or_mean(seen, request.context)
        return total


#: Points of the grid on which the half-maximal dose is searched.
_N_GRID = 81


@checked
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
        self, form: Literal["log_linear", "hill"] = "log_linear", *, profile: Profile = "pseudobulk"
    ) -> None:
        super().__init__(profile=profile)
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

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
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


#: Similarities that differ by less are equal.
_TIE = 1e-9


@checked
class NearestPerturbation(MeanPredictor):
    """Predict the change of the training perturbation whose features are most similar.

    A component that was measured alone, at its dose, kind and time, keeps its own change. One
    measured alone at other doses only takes the nearest of these. For any other, the perturbation
    measured alone with the most similar features stands in (Tanimoto or Gaussian similarity, as
    in `KernelRidge`), at the nearest of its doses; ties are averaged. A change is that of the
    context asked for or, where it was not measured there, the mean over its contexts. The changes
    of the components of a combination are summed.

    Parameters
    ----------
    features
        What is known about perturbations; `fit` refuses to go on without. Training perturbations
        that have none cannot be the nearest.
    profile
        What the mean of a population is; see `MeanPredictor`.
    """

    name: ClassVar[str] = "nearest_perturbation"

    def __init__(
        self, features: PerturbationFeatures | None = None, *, profile: Profile = "pseudobulk"
    ) -> None:
        super().__init__(profile=profile)
        self.features = features

    def _learn(self) -> None:
        super()._learn()
        features = require_features(self.features, type(self).__name__)
        self._singles: dict[str, list[Condition]] = {}
        for condition in self.deltas:
            if len(condition.components) == 1:
                self._singles.setdefault(condition.components[0].name, []).append(condition)
        self._similarity = Similarity(
            features, [name for name in self._singles if name in features]
        )

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
        total = np.zeros(len(self.profiles.var_names))
        for component in request.condition.components:
            seen = measured_alone(self.deltas, component, request.condition.time)
            if seen:
                total += here_or_mean(seen, request.context)
                continue
            changes = [
                here_or_mean(self.deltas[condition], request.context)
                for name in self._nearest(component)
                for condition in _nearest_dose(self._singles[name], component)
            ]
            total += np.mean(changes, axis=0)
        return total

    def _nearest(self, component: Component) -> list[str]:
        if component.name in self._singles:
            return [component.name]
        similarity, shared = self._similarity.between([component.name])
        if not shared.any():
            raise UnknownPerturbationError(component.name, names_of_singles(self.deltas))
        best = np.where(shared, similarity, -np.inf)[0]
        found = np.flatnonzero(best >= best.max() - _TIE)
        return [self._similarity.known[i] for i in found]


def _nearest_dose(singles: list[Condition], component: Component) -> list[Condition]:
    gaps = [abs(np.log(c.components[0].dose / component.dose)) for c in singles]
    return [c for c, gap in zip(singles, gaps, strict=True) if gap <= min(gaps) + _TIE]
