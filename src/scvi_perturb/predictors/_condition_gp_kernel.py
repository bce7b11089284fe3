"""The prior of the Gaussian process: how alike two conditions in two contexts should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from scvi_perturb.predictors._similarity import LinearKernel, ModalityKernel, names_in

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Condition
    from scvi_perturb.features import PerturbationFeatures
    from scvi_perturb.predictors._condition_gp_points import Points

    Floats: TypeAlias = NDArray[np.float64]
    #: Hyperparameters by name.
    Theta: TypeAlias = Mapping[str, float]

__all__ = ["FEATURES", "LINEAR", "ConditionKernel", "Kinship"]

#: Before the name of a modality, the name of its weight: of similarity, and of products.
FEATURES: Final = "features:"
LINEAR: Final = "linear:"


@dataclass(frozen=True, slots=True)
class ConditionKernel:
    """What a kernel learns from training: bandwidths and units.

    Parameters
    ----------
    features
        What is known about perturbations, or None.
    modalities, linear
        Kernels of each modality; linear ones of those that may be negative.
    dose
        Geometric mean dose, the unit of doses.
    distance
        Median squared distance between the control profiles of training contexts, the unit of
        distances.
    """

    features: PerturbationFeatures | None
    modalities: dict[str, ModalityKernel]
    linear: dict[str, LinearKernel]
    dose: float
    distance: float

    @classmethod
    def learn(
        cls,
        points: Points,
        conditions: Sequence[Condition],
        features: PerturbationFeatures | None,
    ) -> ConditionKernel:
        """Learn from training points, which are `conditions` in contexts."""
        modalities, linear = {}, {}
        if features is not None:
            for modality, (values, mask) in features.table(names_in(conditions)).items():
                if mask.any():
                    every = features.frame(modality).to_numpy()
                    modalities[modality] = ModalityKernel.learn(every, values[mask])
                    if modalities[modality].width is not None:
                        linear[modality] = LinearKernel.learn(values[mask])
        squared = points.contexts.squared_distances(points.contexts)
        apart = squared[np.triu_indices(len(squared), 1)]
        apart = apart[np.isfinite(apart) & (apart > 0)]
        return cls(
            features,
            modalities,
            linear,
            dose=float(np.exp(np.log(points.doses).mean())),
            distance=float(np.median(apart)) if apart.size else 1.0,
        )

    def knows(self, name: str) -> bool:
        """Whether a name has features that some training condition has too."""
        features = self.features
        return features is not None and any(features.has(name, m) for m in self.modalities)

    def between(self, left: Points, right: Points) -> Kinship:
        """Compare points with points, as far as no hyperparameter is needed."""
        names = [[part.name for part in points.parts] for points in (left, right)]
        kinds = [np.array([part.kind for part in points.parts]) for points in (left, right)]
        same_kind = kinds[0][:, None] == kinds[1][None, :]
        same_name = np.array(names[0])[:, None] == np.array(names[1])[None, :]
        alike = {
            kind + modality: self._alike(modality, kernel, names[0], names[1]) * same_kind
            for kind, kernels in ((FEATURES, self.modalities), (LINEAR, self.linear))
            for modality, kernel in kernels.items()
        }
        logs = [np.log(points.doses / self.dose) for points in (left, right)]
        times = [np.log1p(points.times) for points in (left, right)]
        return Kinship(
            left,
            right,
            alike={"components": (same_name & same_kind).astype(np.float64)} | alike,
            log_doses=None if np.allclose(np.concatenate(logs), 0.0) else (logs[0], logs[1]),
            times=None if np.isnan(np.concatenate(times)).all() else (times[0], times[1]),
            squared=left.contexts.squared_distances(right.contexts) / self.distance,
        )

    def _alike(
        self,
        modality: str,
        kernel: ModalityKernel | LinearKernel,
        left: Sequence[str],
        right: Sequence[str],
    ) -> Floats:
        """Return the similarity of names in a modality; 0 where one of them lacks it."""
        if self.features is None:
            return np.zeros((len(left), len(right)))
        of_left, has_left = self.features.table(left)[modality]
        of_right, has_right = self.features.table(right)[modality]
        both = has_left[:, None] & has_right[None, :]
        return np.where(both, kernel(of_left, of_right), 0.0)


@dataclass(frozen=True, slots=True)
class Kinship:
    """Two sets of points compared: the kernel between them as a function of hyperparameters.

    Parameters
    ----------
    left, right
        The points.
    alike
        Similarities of the parts of both: "components" (the same name and kind), those of each
        modality and its products, `(n_left_parts, n_right_parts)`.
    log_doses
        Natural logarithm of the doses of the parts of both, in units of the mean dose; None if all
        are that dose.
    times
        `log1p` of the times of both; None if none is recorded.
    squared
        Squared distances of the contexts of both, in units of training's median.
    """

    left: Points
    right: Points
    alike: dict[str, Floats]
    log_doses: tuple[Floats, Floats] | None
    times: tuple[Floats, Floats] | None
    squared: Floats

    def __call__(self, theta: Theta) -> Floats:
        """Return the kernel, `(n_left, n_right)`.

        It is `shared`, a sum over pairs of components, and products of components, all of it
        times factors of time and context. Pairs of components add `shift`, `components` where
        they are the same, and the weight of each modality times similarity there; times the
        factor of dose.
        """
        dose = self._dose_factor(theta)
        parts = np.full(dose.shape, theta["shift"])
        for name, alike in self.alike.items():
            if theta[name]:
                parts += theta[name] * alike
        made = self._summed(parts * dose)
        made *= np.outer(self.left.sizes, self.right.sizes) ** -theta["saturation"]
        made += theta["shared"]
        if theta["interactions"]:
            made += theta["interactions"] * self._interactions(dose)
        if self.times is not None:
            made *= _time_factor(*self.times, theta["time_scale"])
        return made * self._context_factor(theta)

    def _summed(self, parts: Floats) -> Floats:
        """Return sums over pairs of components, of `(n_left_parts, n_right_parts)`."""
        return np.asarray((self.right.holds @ (self.left.holds @ parts).T).T)

    def _dose_factor(self, theta: Theta) -> Floats:
        if self.log_doses is None:
            return np.ones((len(self.left.parts), len(self.right.parts)))
        left, right = self.log_doses
        near = np.exp(-((left[:, None] - right[None, :]) ** 2) / (2 * theta["dose_scale"] ** 2))
        half = theta["half_dose"]
        sizes = [(1 + half) / (1 + half * np.exp(-logs)) for logs in self.log_doses]
        made: Floats = near * np.outer(sizes[0], sizes[1])
        return made

    def _interactions(self, dose: Floats) -> Floats:
        """Return the kernel of products of two components, the analysis of variance of order two.

        The similarity of two unordered pairs is the sum over both ways to match their components.
        """
        alike = [own for name, own in self.alike.items() if not name.startswith(LINEAR)]
        parts = dose * (1 + sum(alike)) / (1 + len(alike))
        within = self.left.holds @ parts  # (n_left, n_right_parts)
        across = self.right.holds @ parts.T  # (n_right, n_left_parts)
        total = self._summed(parts) ** 2 + self._summed(parts**2)
        total -= np.asarray((self.right.holds @ within.T**2).T)
        total -= np.asarray(self.left.holds @ across.T**2)
        return total / 2

    def _context_factor(self, theta: Theta) -> Floats:
        weight = theta["context"]
        near = np.exp(-self.squared / theta["context_scale"])
        factor = (1 + weight * near) / (1 + weight)
        made = self.right.weights @ (self.left.weights @ factor).T
        return np.asarray(made).T


def _time_factor(left: Floats, right: Floats, scale: float) -> Floats:
    """Return the Gaussian kernel of `log1p` of times; one not recorded is like no other."""
    apart = left[:, None] - right[None, :]
    missing = np.isnan(left)[:, None], np.isnan(right)[None, :]
    near = np.exp(-(np.nan_to_num(apart) ** 2) / (2 * scale**2))
    return np.where(missing[0] ^ missing[1], 0.0, near)
