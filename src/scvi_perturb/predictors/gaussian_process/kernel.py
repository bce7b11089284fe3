"""Kernel between conditions in contexts, and the choice of its hyperparameters."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, TypeAlias, cast

import numpy as np
from scipy import sparse
from scipy.spatial.distance import cdist

from scvi_perturb.data.request import agrees
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
from scvi_perturb.similarity.kernels import (
    LinearKernel,
    ModalityKernel,
    compare_names,
    names_in,
    near,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Component, Condition
    from scvi_perturb.data.request import Context, RequestRow
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.gaussian_process.inducing import Inducing
    from scvi_perturb.predictors.gaussian_process.signal import Tune

    Floats: TypeAlias = NDArray[np.float64]
    Theta: TypeAlias = Mapping[str, float]


#: Before the name of a modality, the name of its weight: of similarity, and of products.
FEATURES: Final = "features:"
LINEAR: Final = "linear:"


def chunks(n: int, size: int) -> Iterator[slice]:
    """Return slices of a number of rows in turn."""
    return (slice(start, start + size) for start in range(0, n, size))


@dataclass(frozen=True, slots=True)
class ConditionKernel:
    """What a kernel learns from training: bandwidths and units.

    `features`: What is known about perturbations, or None. `modalities`, `linear`: Kernels of each
    modality; linear ones of those that may be negative and that all of training have. `dose`:
    Geometric mean dose, the unit of doses. `distance`: Median squared distance between the control
    profiles of training contexts, the unit of distances.
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
                    # a name without the modality would stand at its mean, as if that were known
                    if modalities[modality].width is not None and mask.all():
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

    `left`, `right`: The points. `alike`: Similarities of the parts of both: "components" (the same
    name and kind), those of each modality and its products, `(n_left_parts, n_right_parts)`.
    `log_doses`: Natural logarithm of the doses of the parts of both, in units of the mean dose;
    None if all are that dose. `times`: `log1p` of the times of both; None if none is recorded.
    `squared`: Squared distances of the contexts of both, in units of training's median.
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

    `labels`: Of each context. `profiles`: `(n_contexts, n_genes)`, or None where data have no
    controls; then contexts are the same or they are not.
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

    `parts`: Distinct components: a name with its kind and dose. `holds`: Which parts each condition
    has, 0 or 1, `(n, n_parts)`. `times`: Of each condition; NaN where it is not recorded.
    `contexts`: Distinct contexts. `weights`: Weight of each context in each point, `(n,
    n_contexts)`.
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

    def some(self, rows: NDArray[np.intp] | slice) -> Points:
        """Return some of the points."""
        holds = self.holds[rows]
        used = np.unique(holds.indices)
        parts = tuple(self.parts[i] for i in used)
        return Points(parts, holds[:, used], self.times[rows], self.contexts, self.weights[rows])

    @property
    def names(self) -> list[tuple[str, ...]]:
        """Sorted names of the components of each point, each once."""
        ends = self.holds.indptr
        held = [self.holds.indices[a:b] for a, b in itertools.pairwise(ends)]
        return [tuple(sorted({self.parts[i].name for i in own})) for own in held]

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

    `requests`: Condition and context of each row. `changes`, `controls`: Changes from control, and
    the control profiles, `(n_rows, n_genes)`; controls are None where changes are measured without.
    `noise`: Sampling variances of the profiles that changes lead to and from, or None where these
    are not known. `n_each`: Number of rows of data that each change is the mean of, `(n_rows,)`.
    `contexts`: All contexts of which a control is known. `members`: Rows of each group that is left
    out together. `are_shares`: Whether profiles sum to ten thousand.
    """

    requests: list[RequestRow]
    changes: Floats
    controls: Floats | None
    noise: tuple[NDArray[np.float32], NDArray[np.float32]] | None
    n_each: Floats
    contexts: Contexts
    members: list[NDArray[np.intp]]
    are_shares: bool = False

    def on(self, scale: Scale) -> tuple[Floats, Floats | None]:
        """Return changes on a scale, and their sampling variances there, to first order."""
        if self.controls is None:
            return self.changes, None
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

    `theta`: Hyperparameters. `unit`: What the kernel is divided by, so that its mean diagonal in
    training is 1. `spectrum`: Of the training rows. `signal`: Of each output.
    """

    theta: dict[str, float]
    unit: float
    spectrum: Spectrum | Inducing
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
    cross: CrossKernel,
    outputs: Outputs,
    *,
    members: Sequence[NDArray[np.intp]],
    tune: Tune,
    like: Theta | None = None,
) -> Fitted:
    """Return the best fit: each hyperparameter in turn, the others kept, until nothing is gained.

    The search starts from the best of a few starts: all terms alike, and each alone. With the
    choice for nearly the same rows in `like`, it starts from that and looks at neighbours alone.
    """
    start, open_ones = grids(cross, noise_known=outputs.noise is not None)
    starts = _starts(start, open_ones)
    if like is not None:
        starts = [start | {name: like.get(name, value) for name, value in start.items()}]
    best: Fitted | None = None
    scores: dict[tuple[float, ...], float] = {}
    for theta in starts:
        made = fit(theta, cross, outputs, members=members, tune=tune)
        scores[tuple(theta.values())] = made.signal.score
        best = made if best is None or _gains(best, made.signal.score) else best
    if best is None:
        return fit(start, cross, outputs, members=members, tune=tune)
    for _ in range(_N_ROUNDS):
        before = best.signal.score
        for name, values in open_ones.items():
            for value in values if like is None else _neighbours(values, best.theta[name]):
                theta = best.theta | {name: value}
                tried = scores.get(tuple(theta.values()))
                if not _may_differ(theta, best.theta, name) or (
                    tried is not None and not _gains(best, tried)
                ):
                    continue
                made = fit(theta, cross, outputs, members=members, tune=tune)
                scores[tuple(theta.values())] = made.signal.score
                best = made if _gains(best, made.signal.score) else best
        if before - best.signal.score <= _GAIN * abs(before):
            break
    return best


def _neighbours(values: tuple[float, ...], chosen: float) -> tuple[float, ...]:
    """Return the values of a grid next to the chosen one."""
    place = int(np.abs(np.subtract(values, chosen)).argmin())
    return values[max(place - 1, 0) : place + 2]


def _may_differ(theta: Theta, best: Theta, name: str) -> bool:
    """Whether a hyperparameter has another value than the best, and one that makes a kernel."""
    if theta[name] == best[name] or (name == "context_scale" and not theta["context"]):
        return False
    return any(value > 0 for name, value in theta.items() if _is_weight(name))


def _starts(
    start: dict[str, float], open_ones: dict[str, tuple[float, ...]]
) -> list[dict[str, float]]:
    weights = [name for name in start if _is_weight(name) and name in open_ones]
    alone = [start | {other: 0.03 for other in weights} | {name: 1.0} for name in weights]
    found = [start, *alone]
    return found if "noise" not in open_ones else [*found, start | {"noise": 1e6}]


def _is_weight(name: str) -> bool:
    return name in ("shared", "shift", "components") or name.startswith((FEATURES, LINEAR))


def _gains(best: Fitted, score: float) -> bool:
    """Whether a score is better than the best by enough."""
    return best.signal.score - score > _GAIN * abs(best.signal.score)


@dataclass(frozen=True, slots=True)
class Search:
    """Rows to tune on, compared by a kernel.

    `rows`: All rows. `chosen`, `members`: Those to tune on, and which of them are left out
    together. `cross`: The kernel between those, but for hyperparameters. `tune`: What is made
    least. `n_components`: See `Outputs.of`.
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

    def best(
        self, pseudocounts: Sequence[float], like: Theta | None = None
    ) -> tuple[Scale, Outputs, Fitted]:
        """Return a scale, all rows on it, and the best fit to those tuned on.

        Hyperparameters are tuned on the first scale. Whether another is clearly better is asked
        with these kept; if so, they are tuned again on it. `like` is as for `tuned`.
        """
        first = Scale(pseudocounts[0])
        outputs = self._outputs(first)
        fitted = self._tuned(outputs, like)
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

    def _tuned(self, outputs: Outputs, like: Theta | None = None) -> Fitted:
        some = outputs.subset(self.chosen)
        return tuned(self.cross, some, members=self.members, tune=self.tune, like=like)

    def _errors(self, scale: Scale, outputs: Outputs, fitted: Fitted, weights: Floats) -> Floats:
        """Return squared errors of profiles when a group is left out, `(n_groups,)`."""
        some, chosen = outputs.subset(self.chosen), self.chosen
        predicted = some.genes(
            some.values
            - left_out(cast("Spectrum", fitted.spectrum), fitted.signal.ratios, self.members)
        )
        controls = self.rows.controls
        if controls is not None:
            predicted = scale.back(predicted, controls[chosen])
            if self.rows.are_shares:
                predicted = renormalized(predicted, controls[chosen])
        squared = weights * ((predicted - self.rows.changes[chosen]) ** 2).sum(axis=1)
        return np.array([squared[own].sum() for own in self.members])
