"""The fitted Gaussian process: means, variances and novelty of what is asked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from scvi_perturb.predictors._condition_gp_kernel import ConditionKernel
from scvi_perturb.predictors._condition_gp_points import Points
from scvi_perturb.predictors._condition_gp_search import Search
from scvi_perturb.predictors._condition_gp_signal import calibration
from scvi_perturb.predictors._condition_gp_spectrum import Spectrum

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._condition_gp_outputs import Outputs
    from scvi_perturb.predictors._condition_gp_points import Contexts
    from scvi_perturb.predictors._condition_gp_rows import Rows
    from scvi_perturb.predictors._condition_gp_scale import Scale
    from scvi_perturb.predictors._condition_gp_signal import Tune
    from scvi_perturb.predictors._condition_gp_tune import Fitted
    from scvi_perturb.predictors._requests import Request

    Floats: TypeAlias = NDArray[np.float64]

__all__ = ["Answer", "Posterior"]


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
    kernel, points, scale, outputs, fitted
        What was learned; outputs are changes on the scale.
    weights
        A kernel to the training points times these is the mean of outputs, `(n_rows, n_outputs)`.
    calibration
        Squared error of what was left out by the variance that was stated for it. Stated variances
        are multiplied by it.
    """

    kernel: ConditionKernel
    points: Points
    scale: Scale
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
        pseudocounts: Sequence[float],
    ) -> Posterior:
        """Choose hyperparameters and the scale on some rows, and fit all.

        Where there is one group alone, nothing can be left out: the marginal likelihood decides,
        and the scale is that of the first pseudocount.
        """
        points = Points.of(rows.requests, rows.contexts)
        conditions = [request.condition for request in rows.requests]
        kernel = ConditionKernel.learn(points, conditions, features)
        search = Search.of(rows, kernel, tune=tune, n_components=n_components, n_tuning=n_tuning)
        scale, outputs, fitted = search.best(pseudocounts)
        chosen, members = search.chosen, search.members
        stated = calibration(fitted.spectrum, outputs.subset(chosen), fitted.signal, members)
        if len(chosen) < len(rows.requests):
            within = kernel.between(points, points)(fitted.theta) / fitted.unit
            spectrum = Spectrum.of(within, outputs.row_noise, outputs.values)
            fitted = replace(fitted, spectrum=spectrum)
        weights = fitted.spectrum.weights(fitted.signal.ratios)
        return cls(kernel, points, scale, outputs, fitted, weights, stated)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Names and values of the hyperparameters."""
        return dict(self.fitted.theta) | {
            "pseudocount": self.scale.pseudocount,
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

    def mean(self, points: Points, controls: Floats) -> Floats:
        """Return predicted changes alone, from control profiles, both `(n, n_genes)`."""
        made = self.outputs.genes(self._to_training(points) @ self.weights)
        return self.scale.back(made, controls)

    def at(self, points: Points, controls: Floats) -> Answer:
        """Return the posterior at points, of changes from control profiles, `(n, n_genes)`.

        Standard deviations are brought back from the scale to first order.
        """
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
        mean = self.scale.back(outputs.genes(kernel @ self.weights), controls)
        std = np.sqrt(variances) / self.scale.steepness(controls + mean)
        return Answer(mean, std, np.clip(novelty, 0.0, 1.0))

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
