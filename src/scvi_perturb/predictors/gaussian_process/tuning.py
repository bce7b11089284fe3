"""Choose the hyperparameters of the kernel by left-out error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeAlias

import numpy as np

from scvi_perturb.predictors.gaussian_process.kernel import FEATURES, LINEAR, Points
from scvi_perturb.predictors.gaussian_process.signal import (
    Outputs,
    Scale,
    Signal,
    Spectrum,
    clearly_better,
    fit_signal,
    left_out,
    row_weights,
)
from scvi_perturb.predictors.profiles import renormalized

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors.gaussian_process.kernel import (
        ConditionKernel,
        CrossKernel,
        Rows,
        Theta,
    )
    from scvi_perturb.predictors.gaussian_process.signal import Tune

    Floats: TypeAlias = NDArray[np.float64]


_WEIGHTS: Final = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_CONTEXT: Final = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
_CONTEXT_SCALES: Final = (0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0)
_DOSE_SCALES: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 100.0)
_HALF_DOSES: Final = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_TIME_SCALES: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 100.0)
_SATURATION: Final = (0.0, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0)
_NOISE: Final = (0.3, 1.0, 3.0, 10.0, 1e6)
_DEFAULTS: Final = {
    "shared": 1.0,
    "shift": 0.0,
    "components": 1.0,
    "interactions": 0.0,
    "saturation": 0.0,
    "dose_scale": 2.0,
    "half_dose": 0.0,
    "time_scale": 1.0,
    "context": 0.0,
    "context_scale": 1.0,
    "noise": 1.0,
}
#: Rounds over all hyperparameters, at most.
_N_ROUNDS: Final = 3
#: A score must fall by this share to be better.
_GAIN: Final = 1e-4


@dataclass(frozen=True, slots=True)
class Fitted:
    """A kernel with its hyperparameters, fitted to outputs.

    Parameters
    ----------
    theta
        Hyperparameters.
    unit
        What the kernel is divided by, so that its mean diagonal in training is 1.
    spectrum
        Of the training rows.
    signal
        Of each output.
    """

    theta: dict[str, float]
    unit: float
    spectrum: Spectrum
    signal: Signal


def grids(
    cross: CrossKernel, *, noise_known: bool
) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    """Return where to start, and the values to choose from of what the data can tell."""
    points = cross.left
    modalities = [name for name in cross.alike if name.startswith((FEATURES, LINEAR))]
    combined = bool((points.sizes > 1).any())
    # rows in which each name of a kind occurs, at any dose
    occurring = cross.alike["components"] @ np.asarray(points.holds.sum(axis=0)).ravel()
    repeated = bool((occurring > 1).any())
    start = _DEFAULTS | dict.fromkeys(modalities, 1.0)
    open_ones: dict[str, tuple[float, ...]] = {}
    if len(points.parts) > 1:
        if noise_known or repeated:
            open_ones |= dict.fromkeys(("shared", "components"), _WEIGHTS)
        else:
            # what is peculiar to a condition that was seen once is not to be told from noise
            start["components"] = 0.0
            open_ones |= {"shared": _WEIGHTS}
        open_ones |= dict.fromkeys(modalities, _WEIGHTS)
    if combined:
        start |= {"shift": 0.1, "interactions": 0.1, "saturation": 0.2}
        open_ones |= {"saturation": _SATURATION}
        open_ones |= dict.fromkeys(("shift", "interactions"), _WEIGHTS)
    if cross.log_doses is not None:
        open_ones |= {"dose_scale": _DOSE_SCALES, "half_dose": _HALF_DOSES, "shift": _WEIGHTS}
    if cross.times is not None and len(np.unique(points.times)) > 1:
        open_ones["time_scale"] = _TIME_SCALES
    if len(np.unique(points.weights.indices)) > 1:
        start["context"] = 1.0
        open_ones["context"] = _CONTEXT
        if np.isfinite(cross.squared).all():
            open_ones["context_scale"] = _CONTEXT_SCALES
    if noise_known:
        open_ones["noise"] = _NOISE
    return start, open_ones


def fit(
    theta: Theta,
    cross: CrossKernel,
    outputs: Outputs,
    *,
    members: Sequence[NDArray[np.intp]],
    tune: Tune,
) -> Fitted:
    """Fit outputs with given hyperparameters."""
    kernel = cross(theta)
    unit = float(np.diagonal(kernel).mean())
    kernel /= unit if unit > 0 else 1.0
    diagonal = np.diagonal(kernel).copy()
    spectrum = Spectrum.of(kernel, outputs.row_noise, outputs.values)
    signal = fit_signal(
        spectrum, outputs, diagonal=diagonal, members=members, tune=tune, noise=theta["noise"]
    )
    return Fitted(dict(theta), unit if unit > 0 else 1.0, spectrum, signal)


def tuned(
    cross: CrossKernel, outputs: Outputs, *, members: Sequence[NDArray[np.intp]], tune: Tune
) -> Fitted:
    """Return the best fit: each hyperparameter in turn, the others kept, until nothing is gained.

    The search starts from the best of a few starts: all terms alike, and each alone.
    """
    start, open_ones = grids(cross, noise_known=outputs.noise is not None)
    best: Fitted | None = None
    for theta in _starts(start, open_ones):
        best = _better(best, fit(theta, cross, outputs, members=members, tune=tune))
    if best is None:
        return fit(start, cross, outputs, members=members, tune=tune)
    for _ in range(_N_ROUNDS):
        before = best.signal.score
        for name, values in open_ones.items():
            for value in values:
                theta = best.theta | {name: value}
                if value != best.theta[name] and _any_weight(theta):
                    made = fit(theta, cross, outputs, members=members, tune=tune)
                    best = _better(best, made)
        if before - best.signal.score <= _GAIN * abs(before):
            break
    return best


def _starts(
    start: dict[str, float], open_ones: dict[str, tuple[float, ...]]
) -> list[dict[str, float]]:
    weights = [name for name in start if _is_weight(name) and name in open_ones]
    alone = [start | {other: 0.03 for other in weights} | {name: 1.0} for name in weights]
    found = [start, *alone]
    return found if "noise" not in open_ones else [*found, start | {"noise": 1e6}]


def _is_weight(name: str) -> bool:
    return name in ("shared", "shift", "components") or name.startswith((FEATURES, LINEAR))


def _any_weight(theta: Theta) -> bool:
    return any(value > 0 for name, value in theta.items() if _is_weight(name))


def _better(best: Fitted | None, made: Fitted) -> Fitted:
    """Return the better of two; the first unless the second gains enough."""
    if best is None:
        return made
    gain = best.signal.score - made.signal.score
    return made if gain > _GAIN * abs(best.signal.score) else best


@dataclass(frozen=True, slots=True)
class Search:
    """Rows to tune on, compared by a kernel.

    Parameters
    ----------
    rows
        All rows.
    chosen, members
        Those to tune on, and which of them are left out together.
    cross
        The kernel between those, but for hyperparameters.
    tune
        What is made least.
    n_components
        See `Outputs.of`.
    """

    rows: Rows
    chosen: NDArray[np.intp]
    members: list[NDArray[np.intp]]
    cross: CrossKernel
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
            again = fit(fitted.theta, self.cross, found.subset(self.chosen),
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
        return tuned(self.cross, some, members=self.members, tune=self.tune)

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
                predicted = renormalized(predicted, controls[chosen])
        squared = weights * ((predicted - self.rows.changes[chosen]) ** 2).sum(axis=1)
        return np.array([squared[own].sum() for own in self.members])
