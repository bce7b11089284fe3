"""Ridge regression of effects on features: kernel, blended and principal components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import (
    SchemaError,
    UnknownPerturbationError,
    warn,
)
from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.similarity.kernels import (
    Similarity,
    covered,
    names_in,
    needed,
    require_features,
    sharpened,
    weighted_mean,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Condition
    from scvi_perturb.data.request import RequestRow
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.profiles import Deltas, Profile
    from scvi_perturb.predictors.request import ControlCells
    from scvi_perturb.similarity.kernels import Parts

    Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class FeatureScores:
    """Maps names to scores of their features.

    Each modality is centred and divided by the root of its total variance over the training
    names, so that none outweighs another by its number of columns or its units. A name that lacks
    a modality is put at the mean of that modality.

    `features`: What is known about perturbations. `centre`, `scale`: Mean row and scale of each
    modality, in training. `axes`: Principal axes, `(n_columns of all modalities, k)`.
    """

    features: PerturbationFeatures
    centre: dict[str, NDArray[np.float64]]
    scale: dict[str, float]
    axes: NDArray[np.float64]

    @classmethod
    def fit(
        cls, features: PerturbationFeatures, names: Sequence[str], n_components: int
    ) -> FeatureScores:
        """Learn centre, scale and axes from `names`, each counted once."""
        centre, scale = {}, {}
        distinct = sorted(set(names))
        for modality, (values, mask) in features.table(distinct).items():
            own = values[mask].astype(np.float64)
            centre[modality] = own.mean(axis=0) if len(own) else np.zeros(values.shape[1])
            total = float(own.var(axis=0).sum()) if len(own) else 0.0
            scale[modality] = np.sqrt(total) if total > 0 else 1.0
        made = cls(features, centre, scale, np.empty((0, 0)))
        _, spread, axes = np.linalg.svd(made._standard(distinct), full_matrices=False)
        rank = int((spread > max(spread[0], 1.0) * 1e-10).sum())
        kept = min(n_components, max(rank, 1))
        return cls(features, centre, scale, axes[:kept].T)

    def of(self, names: Sequence[str]) -> NDArray[np.float64]:
        """Return the scores of names that have features, `(n_names, k)`."""
        return self._standard(names) @ self.axes

    def _standard(self, names: Sequence[str]) -> NDArray[np.float64]:
        parts = [
            np.where(mask[:, None], values - self.centre[modality], 0.0) / self.scale[modality]
            for modality, (values, mask) in self.features.table(names).items()
        ]
        return np.concatenate(parts, axis=1)


#: Penalties to choose from, in units of the kernel's diagonal.
PENALTIES: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


@dataclass(frozen=True, slots=True)
class Responses:
    """All changes of training, one row a condition in a context.

    `conditions`: Of each row. `changes`: Changes from control, `(n_rows, n_genes)`.
    """

    conditions: tuple[Condition, ...]
    changes: NDArray[np.float64]

    @classmethod
    def gather(cls, deltas: Deltas, usable: Callable[[Condition], bool], *, who: str) -> Responses:
        """Return the rows of the conditions that `usable` accepts.

        The others are left out, of which a warning tells the number.

        Raises `SchemaError`: If none can be used.
        """
        left_out = sorted(str(condition) for condition in deltas if not usable(condition))
        kept = [condition for condition in deltas if usable(condition)]
        if not deltas:
            msg = f"{who} found no training condition that it can learn from; see what it needs."
            raise SchemaError(msg)
        if not kept:
            msg = (
                f"{who} can learn from none of the {len(deltas)} training conditions, such as "
                f"{left_out[:3]}: it knows nothing of what was perturbed in them. Check that names "
                "are written alike in the features (or genes) and in the screen."
            )
            raise SchemaError(msg)
        if left_out:
            warn(
                f"{who} leaves out {len(left_out)} of {len(deltas)} training conditions of whose "
                f"components it knows no features, such as {left_out[:3]}."
            )
        rows = [(condition, delta) for condition in kept for delta in deltas[condition].values()]
        return cls(tuple(condition for condition, _ in rows), np.stack([row for _, row in rows]))

    @classmethod
    def with_features(
        cls, deltas: Deltas, features: PerturbationFeatures, *, who: str
    ) -> Responses:
        """Return the rows of the conditions whose components all have features; as `gather`."""
        return cls.gather(deltas, lambda condition: covered(condition, features), who=who)

    def groups(self) -> NDArray[np.int64]:
        """Return a number for each row that rows of the same perturbation share, `(n_rows,)`.

        The same perturbation is the same set of names, whatever the context, dose, kind or time.
        """
        sets = [tuple(sorted({part.name for part in c.components})) for c in self.conditions]
        place = {names: i for i, names in enumerate(sorted(set(sets)))}
        return np.array([place[names] for names in sets], np.int64)


@dataclass(frozen=True, slots=True)
class GroupedRidge:
    """`weights` such that `kernel_to_training @ weights` is the prediction.

    `weights`: `(n_rows, n_outputs)`. `penalty`: The penalty that was chosen. `errors`: Mean squared
    error of each penalty when each group was left out, `(n_penalties,)`.
    """

    weights: NDArray[np.float64]
    penalty: float
    errors: NDArray[np.float64]

    @classmethod
    def fit(
        cls,
        kernel: NDArray[np.float64],
        targets: NDArray[np.float64],
        *,
        groups: NDArray[np.int64],
        penalties: Sequence[float],
    ) -> GroupedRidge:
        """Fit `targets` and choose the penalty of the least left-out error.

        With `Q = (kernel + penalty I)^-1`, the residual of a group `g` that is left out is
        `Q[g, g]^-1 (Q targets)[g]`, so nothing is fitted twice.

        `kernel`: Positive semidefinite, `(n_rows, n_rows)`; averaging over modalities that two
        names share may break this a little, so negative eigenvalues are set to 0. `targets`:
        Centred, `(n_rows, n_outputs)`. Centring is not repeated without the group. `groups`: Number
        of the group of each row, `(n_rows,)`. `penalties`: To choose from; the first of the best is
        taken.
        """
        values, vectors = np.linalg.eigh((kernel + kernel.T) / 2)
        values = np.maximum(values, 0.0)
        rotated = vectors.T @ targets
        members = [np.flatnonzero(groups == group) for group in np.unique(groups)]
        # Errors are sums of squares: rotating the outputs to fewer columns keeps them.
        narrow = rotated if targets.shape[1] <= len(targets) else np.linalg.qr(rotated.T)[1].T
        errors = np.array(
            [_left_out(vectors, 1 / (values + penalty), narrow, members) for penalty in penalties]
        )
        best = int(np.argmin(errors))
        shrunken = rotated / (values + penalties[best])[:, None]
        return cls(vectors @ shrunken, float(penalties[best]), errors / targets.size)


def check_penalties(penalties: Sequence[float]) -> tuple[float, ...]:
    """Return the penalties.

    Raises `ValueError`: Unless there is one and all are positive and finite.
    """
    made = tuple(float(penalty) for penalty in penalties)
    if not made or not all(np.isfinite(p) and p > 0 for p in made):
        msg = f"penalties={made}; expected at least one number, all above 0 and finite."
        raise ValueError(msg)
    return made


def _left_out(
    vectors: NDArray[np.float64],
    inverse: NDArray[np.float64],
    rotated: NDArray[np.float64],
    members: list[NDArray[np.intp]],
) -> float:
    """Return the squared error over all groups, each left out in turn."""
    solved = vectors @ (inverse[:, None] * rotated)
    error = 0.0
    for rows in members:
        own = vectors[rows]
        block = (own * inverse) @ own.T
        error += float((np.linalg.solve(block, solved[rows]) ** 2).sum())
    return error


@checked
class _SimilarityRidge(MeanPredictor):
    """Adds to the mean what each training name adds in units of similarity to it."""

    _similarity: Similarity
    _mean: Floats
    _weights: Floats

    def _changes(self, requests: Sequence[RequestRow], given: ControlCells | None) -> Floats:
        del given
        conditions = [request.condition for request in requests]
        needed(conditions, self._similarity.features)
        return self._mean + self._similarity.of(conditions) @ self._weights


@checked
class KernelRidge(_SimilarityRidge):
    """Predict the mean training change plus a kernel regression on features.

    Rows of the regression are all training conditions in all contexts, with as many outputs as
    genes. The kernel between two names is Tanimoto's, `sum(min) / sum(max)`, where a modality is
    nowhere negative, and else Gaussian with the median distance as width; it is averaged over the
    modalities that both names have. That between two conditions is the mean over pairs of
    components, so the prediction of a combination is the mean of those of its components. It sees
    names only: a perturbation has one prediction for all contexts, seen or not, and for all doses,
    kinds and times. A name whose features are similar to none gets the mean.

    The penalty is the one of least squared error when all rows of the same names are left out
    together, the mean kept, in closed form. The cost is cubic in the number of rows.

    Parameters
    ----------
    features
        What is known about perturbations; `fit` refuses to go on without. Training conditions
        with a component that has none are left out, of which a warning tells the number; asked
        for, they raise `UnknownPerturbationError`.
    penalties
        To choose from, in units of the kernel's diagonal.
    profile
        What the mean of a population is; see `MeanPredictor`.

    Attributes
    ----------
    lambda_
        The penalty that was chosen, after `fit`.
    """

    name: ClassVar[str] = "kernel_ridge"
    lambda_: float

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        penalties: Sequence[float] = PENALTIES,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        self.features = features
        self.penalties = check_penalties(penalties)

    def _learn(self) -> None:
        super()._learn()
        features = require_features(self.features, type(self).__name__)
        rows = Responses.with_features(self.deltas, features, who=type(self).__name__)
        self._similarity = Similarity(features, names_in(rows.conditions))
        shares = self._similarity.shares(rows.conditions)
        self._mean = rows.changes.mean(axis=0)
        ridge = GroupedRidge.fit(
            self._similarity.of(rows.conditions) @ shares.T,
            rows.changes - self._mean,
            groups=rows.groups(),
            penalties=self.penalties,
        )
        self._weights = shares.T @ ridge.weights
        self.lambda_ = ridge.penalty


@dataclass(frozen=True, slots=True)
class Blend:
    """A weight for each modality, of sum one, and how sharply their mean falls."""

    weights: dict[str, float]
    sharpness: float


def choose_blend(
    parts: Parts,
    targets: Floats,
    *,
    shares: Floats,
    groups: NDArray[np.int64],
    sharpnesses: Sequence[float],
    penalties: Sequence[float],
) -> Blend:
    """Choose a blend for the regression of `targets` on names.

    The weight of a modality is the share of the squared error that it alone takes away, at its own
    best sharpness and penalty, when groups are left out; one that takes away nothing has none. A
    search for the best weights would fit the noise of few groups. The sharpness of the mean is
    then that of least error.

    `parts`: Similarities of names in each modality, `(n_names, n_names)`; see `Similarity.parts`.
    `targets`: Centred, `(n_rows, n_outputs)`. `shares`: Share of each name in each row, `(n_rows,
    n_names)`. `groups`: Number of the group of each row, `(n_rows,)`. `sharpnesses`, `penalties`:
    To choose from; the first of the best is taken.
    """
    if targets.shape[1] > len(targets):
        # errors are sums of squares: fewer columns of the same products have the same
        targets = np.linalg.qr(targets.T)[1].T

    def errors(alike: Floats) -> list[float]:
        kernels = (shares @ sharpened(alike, value) @ shares.T for value in sharpnesses)
        fits = (GroupedRidge.fit(k, targets, groups=groups, penalties=penalties) for k in kernels)
        return [float(one.errors.min()) for one in fits]

    gains = dict.fromkeys(parts, 1.0)
    if len(parts) > 1:
        before = float((targets**2).mean())
        alone = {name: min(errors(alike)) for name, (alike, _) in parts.items()}
        gains = {name: max(before - error, 0.0) for name, error in alone.items()}
        if not any(gains.values()):
            gains = dict.fromkeys(parts, 1.0)
    weights = {name: gain / sum(gains.values()) for name, gain in gains.items()}
    best = int(np.argmin(errors(weighted_mean(parts, weights))))
    return Blend(weights, float(sharpnesses[best]))


def tuning_rows(groups: NDArray[np.int64], most: int) -> NDArray[np.intp]:
    """Return at most `most` rows, whole groups drawn at random, and two groups at least."""
    if len(groups) <= most:
        return np.arange(len(groups))
    order = np.random.default_rng(0).permutation(np.unique(groups))
    sizes = np.array([(groups == group).sum() for group in order])
    n = max(int((np.cumsum(sizes) <= most).sum()), 2)
    return np.flatnonzero(np.isin(groups, order[:n]))


#: Sharpnesses to choose from; 0 is `KernelRidge`.
SHARPNESSES: Final = (0.0, 1.0, 2.0, 4.0, 8.0, 16.0)


@checked
class BlendedKernelRidge(_SimilarityRidge):
    """Predict the mean training change plus a regression on features, the kernel of which is tuned.

    As `KernelRidge`, but the similarity of two names is a weighted mean over modalities, then
    sharpened: `(exp(g s) - 1) / (exp(g) - 1)`. Tanimoto's similarity falls slowly, so that all of
    training has a say in each prediction; how fast it should fall is a question to the data.

    All is chosen by the squared error when all rows of the same names are left out together, the
    mean kept, in closed form. A modality weighs as much as the share of the error that it takes
    away by itself, so that one that says nothing does no harm; then sharpness and penalty are
    those of least error. The cost is that of some 50 ridge regressions for each modality.

    Parameters
    ----------
    features
        What is known about perturbations, as for `KernelRidge`.
    sharpnesses
        To choose from, none negative; 0 leaves the similarity as it is.
    penalties
        To choose from, in units of the kernel's diagonal.
    n_tuning
        Most rows to choose weights and sharpness on, whole sets of names drawn at random.
    profile
        What the mean of a population is; see `MeanPredictor`.

    Attributes
    ----------
    weights_, sharpness_, lambda_
        Weight of each modality, sharpness and penalty that were chosen, after `fit`.

    References
    ----------
    Gönen and Alpaydin, Multiple kernel learning algorithms, Journal of Machine Learning Research
    2011.
    """

    name: ClassVar[str] = "blended_kernel_ridge"
    weights_: dict[str, float]
    sharpness_: float
    lambda_: float

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        sharpnesses: Sequence[float] = SHARPNESSES,
        penalties: Sequence[float] = PENALTIES,
        n_tuning: int = 500,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        self.features = features
        self.sharpnesses = tuple(float(value) for value in sharpnesses)
        if not self.sharpnesses or not all(0 <= value <= 100 for value in self.sharpnesses):
            msg = f"sharpnesses={self.sharpnesses}; expected at least one number, from 0 to 100."
            raise ValueError(msg)
        self.penalties = check_penalties(penalties)
        self.n_tuning = n_tuning

    def _learn(self) -> None:
        super()._learn()
        features = require_features(self.features, type(self).__name__)
        rows = Responses.with_features(self.deltas, features, who=type(self).__name__)
        plain = Similarity(features, names_in(rows.conditions))
        parts, shares = plain.parts(plain.known), plain.shares(rows.conditions)
        groups = rows.groups()
        self._mean = rows.changes.mean(axis=0)
        centred = rows.changes - self._mean
        some = tuning_rows(groups, self.n_tuning)
        blend = choose_blend(
            parts,
            centred[some],
            shares=shares[some],
            groups=groups[some],
            sharpnesses=self.sharpnesses,
            penalties=self.penalties,
        )
        alike = sharpened(weighted_mean(parts, blend.weights), blend.sharpness)
        ridge = GroupedRidge.fit(
            shares @ alike @ shares.T, centred, groups=groups, penalties=self.penalties
        )
        self.weights_, self.sharpness_ = blend.weights, blend.sharpness
        self.lambda_ = ridge.penalty
        self._similarity = Similarity(
            features, plain.known, weights=blend.weights, sharpness=blend.sharpness
        )
        self._weights = shares.T @ ridge.weights


@checked
class PCARidge(MeanPredictor):
    """Predict `G W p + b`, the changes of training being fitted by `Y ~ G W P' + b`.

    `G`, `(n_genes, k)`, are the scores of genes in the leading principal components of the
    training profiles, controls included, each profile centred over genes. `b` is the mean training
    change. `P`, `(n_perturbations, k')`, are the scores of perturbations in the principal
    components of their features, or, without features, the rows of `G` of the perturbed genes
    themselves. `W` is the ridge solution `(G'G + l)^-1 G' (Y - b) P (P'P + l)^-1`.

    It is fitted on conditions of one component, in all contexts; contexts, doses, kinds and times
    make no difference to `p`. A combination is the sum of the predictions of its components, each
    with its `b`.

    Parameters
    ----------
    features
        What is known about perturbations. Without, perturbations have to be genes of the screen
        under the same name. Training conditions of which neither is known are left out, of which a
        warning tells; asked for, they raise `UnknownPerturbationError`.
    n_components
        Number of components of genes and of features, at most the rank.
    penalty
        `l`.
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Ahlmann-Eltze, Huber and Anders, Deep-learning-based gene perturbation effect prediction does
    not yet outperform simple linear baselines, Nature Methods 2025.
    """

    name: ClassVar[str] = "pca_ridge"

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        n_components: int = 10,
        penalty: float = 0.1,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        self.features = features
        self.n_components = n_components
        self.penalty = penalty

    def _learn(self) -> None:
        super()._learn()
        known = self.profiles.var_names if self.features is None else self.features.names
        self._known = frozenset(known)
        singles = {c: seen for c, seen in self.deltas.items() if len(c.components) == 1}
        rows = Responses.gather(
            singles,
            lambda condition: condition.components[0].name in self._known,
            who=type(self).__name__,
        )
        names = [condition.components[0].name for condition in rows.conditions]
        self._genes = self._gene_scores()
        self._scores = None
        if self.features is not None:
            self._scores = FeatureScores.fit(self.features, names, self.n_components)
        self._mean = rows.changes.mean(axis=0)
        centred = rows.changes - self._mean
        left = _ridge_inverse(self._genes, self.penalty)
        places = self._perturbation_scores(names)
        right = _ridge_inverse(places, self.penalty)
        self._weights = left @ centred.T @ right.T

    def _gene_scores(self) -> NDArray[np.float64]:
        """Return `G`; signs do not matter, since `W` follows them."""
        profiles = self.profiles
        groups = [
            i
            for i, condition in enumerate(profiles.conditions)
            if self.profile != "effects" or not condition.is_control
        ]
        matrix = np.stack([profiles.profile([i]) for i in groups], axis=1)
        matrix = matrix - matrix.mean(axis=0)
        left, spread, _ = np.linalg.svd(matrix, full_matrices=False)
        rank = int((spread > spread[0] * 1e-10).sum())
        kept = min(self.n_components, max(rank, 1))
        return left[:, :kept] * spread[:kept]

    def _perturbation_scores(self, names: Sequence[str]) -> NDArray[np.float64]:
        if self._scores is not None:
            return self._scores.of(names)
        return self._genes[self.profiles.var_names.get_indexer(pd.Index(names))]

    def _change(self, request: RequestRow) -> NDArray[np.float64]:
        names = [part.name for part in request.condition.components]
        for name in names:
            if name not in self._known:
                raise UnknownPerturbationError(name, self._known)
        parts = self._genes @ self._weights @ self._perturbation_scores(names).T
        return parts.sum(axis=1) + len(names) * self._mean


def _ridge_inverse(columns: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Return `(X'X + penalty)^-1 X'`, `(n_columns, n_rows)`."""
    gram = columns.T @ columns + penalty * np.eye(columns.shape[1])
    return np.asarray(np.linalg.solve(gram, columns.T), np.float64)
