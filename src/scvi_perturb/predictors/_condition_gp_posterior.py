"""The fitted Gaussian process: means, variances and novelty of what is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from scvi_perturb.predictors._condition_gp_kernel import ConditionKernel
from scvi_perturb.predictors._condition_gp_outputs import Outputs
from scvi_perturb.predictors._condition_gp_points import Contexts, Points
from scvi_perturb.predictors._condition_gp_signal import calibration
from scvi_perturb.predictors._condition_gp_spectrum import Spectrum
from scvi_perturb.predictors._condition_gp_tune import tuned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._condition_gp_signal import Tune
    from scvi_perturb.predictors._condition_gp_tune import Fitted
    from scvi_perturb.predictors._requests import Request

    Floats: TypeAlias = NDArray[np.float64]

__all__ = ["Answer", "Posterior", "Rows"]


@dataclass(frozen=True, slots=True)
class Rows:
    """What is learned from.

    Parameters
    ----------
    requests
        Condition and context of each row.
    changes
        Changes from control, `(n_rows, n_genes)`.
    variances
        Their sampling variances, or None where these are not known.
    n_each
        Number of rows of data that each change is the mean of, `(n_rows,)`.
    contexts
        All contexts of which a control is known.
    members
        Rows of each group that is left out together.
    """

    requests: list[Request]
    changes: Floats
    variances: Floats | None
    n_each: Floats
    contexts: Contexts
    members: list[NDArray[np.intp]]

    def tuning(self, most: int) -> tuple[NDArray[np.intp], list[NDArray[np.intp]]]:
        """Return at most `most` rows, whole groups as far as possible, and their groups."""
        if len(self.requests) <= most:
            return np.arange(len(self.requests)), self.members
        order = np.random.default_rng(0).permutation(len(self.members))
        chosen: list[NDArray[np.intp]] = []
        for i in order.tolist():
            room = most - sum(map(len, chosen))
            if room < min(len(self.members[i]), most // 2):
                break
            chosen.append(self.members[i][:room])
        ends = np.cumsum([len(rows) for rows in chosen])
        members = [np.arange(end - len(rows), end) for rows, end in zip(chosen, ends, strict=True)]
        return np.concatenate(chosen), members


@dataclass(frozen=True, slots=True)
class Answer:
    """Changes with their errors.

    Parameters
    ----------
    mean, std
        Predicted change and its standard deviation, `(n, n_genes)`.
    novelty
        Posterior by prior variance, 0 to 1, `(n,)`.
    """

    mean: Floats
    std: Floats
    novelty: Floats


@dataclass(frozen=True, slots=True)
class Posterior:
    """A kernel, its training points, and their outputs.

    Parameters
    ----------
    kernel, points, outputs, fitted
        What was learned.
    weights
        A kernel to the training points times these is the mean of outputs, `(n_rows, n_outputs)`.
    calibration
        Squared error of what was left out by the variance that was stated for it. Stated variances
        are multiplied by it.
    """

    kernel: ConditionKernel
    points: Points
    outputs: Outputs
    fitted: Fitted
    weights: Floats
    calibration: float

    @classmethod
    def learn(
        cls,
        rows: Rows,
        *,
        features: PerturbationFeatures | None,
        tune: Tune,
        n_components: int | None,
        n_tuning: int,
    ) -> Posterior:
        """Choose hyperparameters on some rows, and fit all.

        Where there is one group alone, nothing can be left out: the marginal likelihood decides.
        """
        points = Points.of(rows.requests, rows.contexts)
        conditions = [request.condition for request in rows.requests]
        kernel = ConditionKernel.learn(points, conditions, features)
        outputs = Outputs.of(
            rows.changes, rows.variances, n_rows_each=rows.n_each, n_components=n_components
        )
        chosen, members = rows.tuning(n_tuning)
        criterion: Tune = tune if len(members) > 1 else "marginal"
        some = Points.of([rows.requests[i] for i in chosen], rows.contexts)
        fitted = tuned(
            kernel.between(some, some), outputs.subset(chosen), members=members, tune=criterion
        )
        stated = calibration(fitted.spectrum, outputs.subset(chosen), fitted.signal, members)
        if len(chosen) < len(rows.requests):
            within = kernel.between(points, points)(fitted.theta) / fitted.unit
            spectrum = Spectrum.of(within, outputs.row_noise, outputs.values)
            fitted = replace(fitted, spectrum=spectrum)
        weights = fitted.spectrum.weights(fitted.signal.ratios)
        return cls(kernel, points, outputs, fitted, weights, stated)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Names and values of the hyperparameters."""
        return dict(self.fitted.theta) | {
            "ratio": self.ratio,
            "calibration": self.calibration,
        }

    @property
    def ratio(self) -> float:
        """Noise by signal variance over all outputs."""
        signal = self.fitted.signal
        return float((signal.scales * signal.ratios).sum() / signal.scales.sum())

    def points_of(self, requests: Sequence[Request], contexts: Contexts | None) -> Points:
        """Take requests apart; contexts of a reference replace those of training."""
        known = self.points.contexts
        if contexts is None:
            contexts = known
            if known.profiles is None:
                contexts = known.with_unknown(request.context for request in requests)
        return Points.of(requests, contexts)

    def mean(self, points: Points) -> Floats:
        """Return predicted changes alone, `(n, n_genes)`."""
        return self.outputs.genes(self._to_training(points) @ self.weights)

    def at(self, points: Points) -> Answer:
        """Return the posterior at points."""
        signal, outputs = self.fitted.signal, self.outputs
        kernel = self._to_training(points)
        prior = np.diagonal(self._within(points))[:, None]
        ratios, which = np.unique(signal.ratios, return_inverse=True)
        explained = self.fitted.spectrum.explained(kernel, ratios)
        left = np.clip(prior - explained, 0.0, prior)[:, which] * signal.scales
        novelty = left.sum(axis=1) / np.maximum(prior[:, 0] * signal.scales.sum(), 1e-300)
        if outputs.noise is None:
            # what is peculiar to a condition is not to be told from its noise
            left = left + signal.scales * signal.ratios
        variances = self.calibration * outputs.gene_variances(left) + outputs.rest
        return Answer(
            outputs.genes(kernel @ self.weights), np.sqrt(variances), np.clip(novelty, 0.0, 1.0)
        )

    def covariance(self, points: Points) -> tuple[Floats, Floats, Floats]:
        """Return posterior and prior covariance of points, and the prior variance of genes."""
        prior = self._within(points)
        explained = self.fitted.spectrum.explained_jointly(self._to_training(points), self.ratio)
        scale = self.outputs.gene_variances(self.fitted.signal.scales[None, :])[0]
        scale = self.calibration * scale
        return prior - explained, prior, scale

    def _to_training(self, points: Points) -> Floats:
        kernel = self.kernel.between(points, self.points)(self.fitted.theta)
        made: Floats = kernel / self.fitted.unit
        return made

    def _within(self, points: Points) -> Floats:
        kernel = self.kernel.between(points, points)(self.fitted.theta)
        made: Floats = kernel / self.fitted.unit
        return made
