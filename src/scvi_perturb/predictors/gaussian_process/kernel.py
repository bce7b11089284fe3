"""Kernel between conditions in contexts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist

from scvi_perturb.predictors.profiles import agrees
from scvi_perturb.similarity.kernels import (
    LinearKernel,
    ModalityKernel,
    compare_names,
    names_in,
    near,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Component, Condition
    from scvi_perturb.data.request import Context, RequestRow
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.gaussian_process.signal import Scale

    Floats: TypeAlias = NDArray[np.float64]
    Theta: TypeAlias = Mapping[str, float]


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
        cls, points: Points, conditions: Sequence[Condition], features: PerturbationFeatures | None
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

    def between(self, left: Points, right: Points) -> CrossKernel:
        """Compare points with points, as far as no hyperparameter is needed."""
        names = [[part.name for part in points.parts] for points in (left, right)]
        kinds = [np.array([part.kind for part in points.parts]) for points in (left, right)]
        same_kind = kinds[0][:, None] == kinds[1][None, :]
        same_name = np.array(names[0])[:, None] == np.array(names[1])[None, :]
        alike: dict[str, Floats] = {}
        if self.features is not None:
            tables = [self.features.table(own) for own in names]
            for kind, kernels in ((FEATURES, self.modalities), (LINEAR, self.linear)):
                compared = compare_names(tables[0], tables[1], kernels)
                alike |= {kind + name: found * same_kind for name, (found, _) in compared.items()}
        logs = [np.log(points.doses / self.dose) for points in (left, right)]
        times = [np.log1p(points.times) for points in (left, right)]
        return CrossKernel(
            left,
            right,
            alike={"components": (same_name & same_kind).astype(np.float64)} | alike,
            log_doses=None if np.allclose(np.concatenate(logs), 0.0) else (logs[0], logs[1]),
            times=None if np.isnan(np.concatenate(times)).all() else (times[0], times[1]),
            squared=left.contexts.squared_distances(right.contexts) / self.distance,
        )


@dataclass(frozen=True, slots=True)
class CrossKernel:
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
        half = theta["half_dose"]
        sizes = [(1 + half) / (1 + half * np.exp(-logs)) for logs in self.log_doses]
        made: Floats = near(left, right, theta["dose_scale"]) * np.outer(sizes[0], sizes[1])
        return made

    def _interactions(self, dose: Floats) -> Floats:
        """Return the kernel of products of two components: analysis of variance of order two."""
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
        alike = np.exp(-self.squared / theta["context_scale"])
        factor = (1 + weight * alike) / (1 + weight)
        made = self.right.weights @ (self.left.weights @ factor).T
        return np.asarray(made).T


def _time_factor(left: Floats, right: Floats, scale: float) -> Floats:
    """Return the Gaussian kernel of `log1p` of times; one not recorded is like no other."""
    missing = np.isnan(left)[:, None], np.isnan(right)[None, :]
    alike = np.nan_to_num(near(left, right, scale), nan=1.0)
    return np.where(missing[0] ^ missing[1], 0.0, alike)


@dataclass(frozen=True, slots=True)
class Contexts:
    """Contexts and the profiles of their control cells.

    Parameters
    ----------
    labels
        Of each context.
    profiles
        `(n_contexts, n_genes)`, or None where data have no controls; then contexts are the same
        or they are not.
    """

    labels: tuple[Context, ...]
    profiles: NDArray[np.float64] | None

    def squared_distances(self, other: Contexts) -> NDArray[np.float64]:
        """Return squared distances of control profiles, `(n_contexts, n_others)`.

        Without profiles 0 between the same contexts and infinite between others.
        """
        if self.profiles is None or other.profiles is None:
            same = np.array([[a == b for b in other.labels] for a in self.labels])
            return np.where(same, 0.0, np.inf)
        return cdist(self.profiles, other.profiles, "sqeuclidean")

    def weights(self, asked: Sequence[Context]) -> sparse.csr_matrix:
        """Return the weight of each context in what is asked, `(n_asked, n_contexts)`.

        What is left open is the mean over all contexts that agree with what was said.
        """
        rows = []
        for context in asked:
            agreeing = np.array([agrees(context, own) for own in self.labels], float)
            rows.append(agreeing / max(agreeing.sum(), 1.0))
        return sparse.csr_matrix(np.array(rows))

    def with_unknown(self, asked: Iterable[Context]) -> Contexts:
        """Return these and the contexts asked for that no known one agrees with.

        Only for contexts without profiles.
        """
        new = [c for c in asked if not any(agrees(c, own) for own in self.labels)]
        return Contexts((*self.labels, *dict.fromkeys(new)), None)


@dataclass(frozen=True, slots=True)
class Points:
    """Conditions in contexts.

    Parameters
    ----------
    parts
        Distinct components: a name with its kind and dose.
    holds
        Which parts each condition has, 0 or 1, `(n, n_parts)`.
    times
        Of each condition; NaN where it is not recorded.
    contexts
        Distinct contexts.
    weights
        Weight of each context in each point, `(n, n_contexts)`.
    """

    parts: tuple[Component, ...]
    holds: sparse.csr_matrix
    times: NDArray[np.float64]
    contexts: Contexts
    weights: sparse.csr_matrix

    @classmethod
    def of(cls, requests: Sequence[RequestRow], contexts: Contexts) -> Points:
        """Take requests apart; none of them is of control."""
        conditions = [request.condition for request in requests]
        parts = tuple(dict.fromkeys(part for c in conditions for part in c.components))
        place = {part: i for i, part in enumerate(parts)}
        row = [i for i, c in enumerate(conditions) for _ in c.components]
        column = [place[part] for c in conditions for part in c.components]
        return cls(
            parts,
            sparse.csr_matrix((np.ones(len(row)), (row, column)), (len(conditions), len(parts))),
            np.array([np.nan if c.time is None else c.time for c in conditions], float),
            contexts,
            contexts.weights([request.context for request in requests]),
        )

    @property
    def sizes(self) -> NDArray[np.float64]:
        """Number of components of each condition, `(n,)`."""
        return np.asarray(self.holds.sum(axis=1), float).ravel()

    @property
    def doses(self) -> NDArray[np.float64]:
        """Dose of each part, `(n_parts,)`."""
        return np.array([part.dose for part in self.parts])


@dataclass(frozen=True, slots=True)
class Rows:
    """What is learned from.

    Parameters
    ----------
    requests
        Condition and context of each row.
    changes, controls
        Changes from control, and the control profiles, `(n_rows, n_genes)`; controls are None where
        changes are measured without.
    noise
        Sampling variances of the profiles that changes lead to and from, or None where these are
        not known.
    n_each
        Number of rows of data that each change is the mean of, `(n_rows,)`.
    contexts
        All contexts of which a control is known.
    members
        Rows of each group that is left out together.
    are_shares
        Whether profiles sum to ten thousand.
    """

    requests: list[RequestRow]
    changes: Floats
    controls: Floats | None
    noise: tuple[Floats, Floats] | None
    n_each: Floats
    contexts: Contexts
    members: list[NDArray[np.intp]]
    are_shares: bool = False

    def on(self, scale: Scale) -> tuple[Floats, Floats | None]:
        """Return changes on a scale, and their sampling variances there, to first order."""
        if self.controls is None:
            return self.changes, None if self.noise is None else self.noise[0] + self.noise[1]
        changes = scale.changes(self.changes, self.controls)
        if self.noise is None:
            return changes, None
        reached = self.noise[0] * scale.steepness(self.controls + self.changes) ** 2
        return changes, reached + self.noise[1] * scale.steepness(self.controls) ** 2

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
