"""Fit a stack: errors of left-out conditions, and the weights of members."""

from __future__ import annotations

import warnings
from copy import deepcopy
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol, Self

import numpy as np
from scipy.optimize import nnls

from scvi_perturb._core import SchemaError, UnknownPerturbationError, log_normalize_cells
from scvi_perturb.predictors.gaussian_process.condition_gp import ConditionGP
from scvi_perturb.predictors.profiles import Moments, renormalized
from scvi_perturb.predictors.stack.intervals import ErrorCovariates, ErrorModel
from scvi_perturb.predictors.stack.scenarios import Fold, folds_of, unit_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from scvi_perturb.data.request import Context, RequestRow, RequestScenario
    from scvi_perturb.predictors.base import MeanPredictor
    from scvi_perturb.predictors.profiles import Deltas, TrainingProfiles
    from scvi_perturb.predictors.request import ControlCells

    Floats = NDArray[np.float64]
    Members = dict[str, MeanPredictor]


#: Bootstraps over which weights are averaged.
_N_BOOTSTRAP: Final = 50
#: Units that the prior counts as.
_N_PRIOR: Final = 20
#: Weight of the constraint that weights sum to one, in units of the errors.
_CONSTRAINT: Final = 1e4
#: Ridge, by the mean diagonal: tells apart members that predict alike.
_RIDGE: Final = 1e-4


def moments_of(
    truth: Floats, predicted: Floats, unit: NDArray[np.intp]
) -> tuple[Floats, Floats, Floats]:
    """Return what least squares needs to know, for each unit.

    `truth`: Left-out changes, `(n_rows, n_genes)`. `predicted`: What each member says of them,
    `(n_members, n_rows, n_genes)`. `unit`: Exchangeable unit of each row, 0 to n_units - 1,
    `(n_rows,)`. Returns products of members, `(n_units, n_members, n_members)`; of members with the
    truth, `(n_units, n_members)`; and of the truth, `(n_units,)`.
    """
    n_units, n_members = int(unit.max()) + 1, len(predicted)
    between = np.zeros((n_units, n_members, n_members))
    across, own = np.zeros((n_units, n_members)), np.zeros(n_units)
    for i in range(n_units):
        rows = unit == i
        flat = predicted[:, rows].reshape(n_members, -1)
        between[i] = flat @ flat.T
        across[i] = flat @ truth[rows].ravel()
        own[i] = (truth[rows] ** 2).sum()
    return between, across, own


def stack_weights(
    between: Floats, across: Floats, prior: Floats, *, seed: int | None = 0
) -> Floats:
    """Return the weights of members, `(n_members,)`.

    They minimise the squared error on left-out units, under `w >= 0` and `sum(w) = 1` (stacked
    regressions). With few units the best corner of the simplex is chance: so weights are drawn to a
    prior, as if twenty more units had been as that says, and averaged over bootstraps of the units.

    `between`, `across`: See `moments_of`. `prior`: Weights believed before, `(n_members,)`, that
    sum to one. `seed`: Seed of the bootstraps.

    Reference: Breiman, Stacked regressions, Machine Learning 1996.
    """
    n_units = len(across)
    random = np.random.default_rng(seed)
    counts = random.multinomial(n_units, np.full(n_units, 1 / n_units), _N_BOOTSTRAP)
    found = []
    for count in counts:
        gram = np.tensordot(count, between, 1)
        goal = np.tensordot(count, across, 1) + _N_PRIOR / n_units * (gram @ prior)
        found.append(_solve((1 + _N_PRIOR / n_units) * gram, goal))
    weights: Floats = np.mean(found, axis=0)
    weights[weights < 1e-3] = 0.0
    return weights / weights.sum()


def _solve(between: Floats, across: Floats) -> Floats:
    n = len(across)
    scale = max(float(np.diag(between).mean()), 1e-300)
    root = np.linalg.cholesky(between / scale + _RIDGE * np.eye(n))
    goal = np.linalg.solve(root, across / scale)
    design = np.vstack([root.T, np.full((1, n), _CONSTRAINT)])
    weights, _ = nnls(design, np.append(goal, _CONSTRAINT))
    made: Floats = weights / max(weights.sum(), 1e-300)
    return made


#: Contexts that the variance of genes of similar level counts as, in that of each gene.
_PRIOR_CONTEXTS: Final = 3.0
#: Genes of similar level.
_N_SIMILAR: Final = 100


@dataclass(frozen=True, slots=True)
class ControlPrior:
    """Control profiles of training.

    `contexts`: Contexts with controls. `profiles`, `variances`: Their control profiles and the
    sampling variances of these, `(n_contexts, n_genes)`. `of_a_cell`: Sampling variance of a
    profile of one cell, `(n_genes,)`.
    """

    contexts: tuple[Context, ...]
    profiles: Floats
    variances: NDArray[np.float32]
    of_a_cell: Floats

    @classmethod
    def of(cls, training: TrainingProfiles) -> Self | None:
        """Gather controls; None where their noise is not known, or contexts are fewer than four."""
        rows = [i for i, condition in enumerate(training.conditions) if condition.is_control]
        if training.variances is None or len(rows) < 4:
            return None
        variances = training.variances[rows]
        return cls(
            tuple(training.contexts[i] for i in rows),
            np.stack([training.profile([i]) for i in rows]),
            variances,
            (variances * training.n_cells[rows, None]).mean(axis=0),
        )

    def variance_of(
        self,
        counts: Any,  # noqa: ANN401
        kind: str,
        library: Floats | None = None,
    ) -> Floats:
        """Return the sampling variance of the profile of cells, given as counts `(n, n_genes)`."""
        n_cells = counts.shape[0]
        if n_cells < 2:
            return self.of_a_cell / n_cells
        moments = Moments.empty((1, counts.shape[1]), per_cell=kind == "cell_mean")
        moments.add(counts, np.zeros(n_cells, np.int64), library)
        values = log_normalize_cells(counts) if kind == "cell_mean" else counts
        sums = np.asarray(values.sum(axis=0), np.float64).reshape(1, -1)
        total = None if library is None else np.array([library.sum()])
        found = moments.variances(sums, np.array([n_cells]), total)
        return self.of_a_cell / n_cells if found is None else found[0]

    def shift(self, context: Context, given: tuple[Floats, Floats] | None = None) -> Floats:
        """Return the expected control less the measured one, `(n_genes,)`.

        `noise / (noise + spread)` of the way to the mean of the other contexts, with the variance
        of each gene over these, drawn to that of genes of similar level (empirical Bayes).

        `context`: Left out of the mean, where training has it. `given`: Profile and variance of
        control cells given; None takes those of training.

        Reference: Efron and Morris, Stein's estimation rule and its competitors, JASA 1973.
        """
        others = np.array([own != context for own in self.contexts])
        if given is None:
            if others.all():
                return np.zeros(self.profiles.shape[1])
            own = int(np.argmin(others))
            given = self.profiles[own], self.variances[own]
        profile, variance = given
        rest, noise = self.profiles[others], self.variances[others]
        centre = rest.mean(axis=0)
        n = len(rest)
        spread = np.maximum(((rest - centre) ** 2).sum(axis=0) / (n - 1) - noise.mean(axis=0), 0)
        usual = _over_similar(centre, spread)
        spread = (n * spread + _PRIOR_CONTEXTS * usual) / (n + _PRIOR_CONTEXTS)
        made: Floats = variance / np.maximum(variance + spread, 1e-12) * (centre - profile)
        return made


def _over_similar(level: Floats, values: Floats) -> Floats:
    """Return the mean of values over genes of similar level."""
    order = np.argsort(level, kind="stable")
    n = min(_N_SIMILAR, len(level))
    total = np.concatenate([[0.0], np.cumsum(values[order])])
    start = np.clip(np.arange(len(level)) - n // 2, 0, len(level) - n)
    made = np.empty_like(values)
    made[order] = (total[start + n] - total[start]) / n
    return made


@dataclass(frozen=True, slots=True)
class Contrast:
    """Damps what many conditions have in common, so that predictions tell them apart.

    A predicted change, less the mean change of training, is multiplied with `g (I + c S / s)^-1`,
    with `S` the covariance of training changes, `s` its largest eigenvalue and `c` the contrast:
    components are damped by as much as they vary, the leading one to `1 / (1 + c)`. This is the
    direction of Fisher's discriminant, with a covariance shrunk to a multiple of the identity
    (Friedman, Regularized discriminant analysis, 1989). The gain `g` makes up for the size that is
    lost: with it training changes, treated alike, come nearest to what they were.

    `mean`: Mean change of training, `(n_genes,)`. `axes`: Components of training changes as rows,
    `(k, n_genes)`, orthonormal. `damped`: What is taken off along each, 0 to 1, `(k,)`. `gain`: At
    least 1.
    """

    mean: Floats
    axes: Floats
    damped: Floats
    gain: float

    @classmethod
    def of(cls, deltas: Deltas, contrast: float, *, who: str) -> Self:
        """Learn the components of training changes.

        Raises `SchemaError`: If there are none.
        """
        changes = [change for seen in deltas.values() for change in seen.values()]
        if not changes:
            msg = f"{who} found no training condition that has a control to change from."
            raise SchemaError(msg)
        mean = np.mean(changes, axis=0)
        _, spread, axes = np.linalg.svd(changes - mean, full_matrices=False)
        share = (spread / max(float(spread[0]), 1e-300)) ** 2
        left = 1 / (1 + contrast * share)
        size = float(share @ left**2)
        gain = float(share @ left) / size if size > 0 else 1.0
        return cls(mean, axes, 1 - left, gain)

    def __call__(self, changes: Floats) -> Floats:
        """Return changes `(n, n_genes)`, damped."""
        specific = changes - self.mean
        specific = specific - (specific @ self.axes.T * self.damped) @ self.axes
        made: Floats = self.mean + self.gain * specific
        return made


def check_contrast(contrast: float) -> float:
    """Return the contrast.

    Raises `ValueError`: If it is negative or not finite.
    """
    if not 0 <= contrast < np.inf:
        msg = f"contrast={contrast}; expected a finite number, at least 0."
        raise ValueError(msg)
    return contrast


#: Why a member does not answer a request.
REFUSALS = (UnknownPerturbationError, SchemaError)


#: Refits are kept for the intervals up to so many rows; beyond, theirs is the final prediction.
MOST_KEPT = 2000
#: With more rows than these, refits choose hyperparameters near those of the whole: a tenth less of
#: many conditions changes the choice little, and the search takes most of the time.
_FEW_ROWS: Final = 200


class ExternalMember(Protocol):
    """A member that is trained elsewhere: a generator, whose refits are dear."""

    def left_out(
        self, scenario: RequestScenario, rows: Sequence[RequestRow], folds: Sequence[Fold]
    ) -> list[Floats] | None:
        """Return the changes of each fold's asked rows, by refits without the removed ones.

        None where it does not take part in the scenario.
        """
        ...


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was left out, and what members predicted of it.

    `rows`: Left-out rows, in the order of all arrays. `truth`, `noise`: Measured changes and their
    sampling variances, `(n_rows, n_genes)`. `fold`, `unit`: Of each row, `(n_rows,)`. `predicted`:
    By name of the member, `(n_rows, n_genes)`. `posterior`: Variance that the regression states,
    `(n_rows, n_genes)`. `novelty`: Posterior by prior variance of the regression, NaN where it does
    not answer, `(n_rows,)`.
    """

    rows: list[RequestRow]
    truth: Floats
    noise: Floats
    fold: NDArray[np.intp]
    unit: NDArray[np.intp]
    predicted: dict[str, Floats]
    posterior: Floats
    novelty: Floats


class MemberPredictions(NamedTuple):
    """Changes by member, and the regression's own variance and novelty."""

    changes: dict[str, Floats]
    posterior: Floats
    novelty: Floats


def treated_rows(profiles: TrainingProfiles) -> tuple[list[RequestRow], NDArray[np.intp]]:
    """Return the treated rows that have a control, and the group of each in the profiles."""
    from scvi_perturb.data.request import RequestRow

    pairs = list(zip(profiles.conditions, profiles.contexts, strict=True))
    group = {pair: i for i, pair in enumerate(pairs)}
    rows = [RequestRow(what, own) for what, seen in profiles.deltas.items() for own in seen]
    places = [group[row.condition, row.context] for row in rows]
    return rows, np.array(places, dtype=np.intp)


@dataclass(slots=True)
class ScenarioStack:
    """A stack for one scenario.

    `scenario`: What is asked. `members`: Fitted to all of training, by name. `refits`: The same
    without what each fold takes away. `left_out`: What they were tried on; None where training has
    nothing to try the scenario on. `between`, `across`, `own`: Moments of left-out changes, see
    `moments_of`; in the order of `left_out.predicted`. `prior`: Of the controls of contexts that
    were never seen perturbed. `seed`: Of the bootstraps of weights. `contrast`: Of all predictions,
    see `Contrast`.
    """

    scenario: RequestScenario
    members: Members
    refits: list[Members]
    left_out: LeftOut | None
    between: Floats
    across: Floats
    own: Floats
    prior: ControlPrior | None
    seed: int | None
    contrast: float = 0.0
    _solved: dict[tuple[str, ...], tuple[dict[str, float], ErrorModel]] = field(
        default_factory=dict
    )

    @classmethod
    def fit(
        cls,
        scenario: RequestScenario,
        profiles: TrainingProfiles,
        members: Members,
        *,
        external: Mapping[str, ExternalMember],
        n_folds: int,
        seed: int | None,
        lenient: bool,
        contrast: float = 0.0,
    ) -> ScenarioStack:
        """Fit members to all of training, and to what each fold leaves of it.

        Members that do not fit the data raise, or with `lenient` are left out. The law of errors is
        unknown where there is nothing to leave out, or a member cannot be fitted again without it.
        """
        rows, groups = treated_rows(profiles)
        fitted = _fitted(members, profiles, lenient=lenient)
        prior = ControlPrior.of(profiles) if scenario == "unseen_context" else None
        folds = folds_of(scenario, rows, n_folds=n_folds, seed=seed)
        if len(folds) > 1 and all(member.can_refit for member in members.values()):
            refits = [
                _fitted(
                    members,
                    profiles.without(groups[fold.removed].tolist()),
                    lenient=True,
                    like=fitted if len(rows) > _FEW_ROWS else {},
                )
                for fold in folds
            ]
            folds, refits = _answerable(folds, refits, rows)
        else:
            folds, refits = [], []
        if len(folds) > 1:
            left_out = _leave_out(
                scenario, profiles, (rows, groups), folds, refits, prior, contrast
            )
            for name, member in external.items():
                predicted = member.left_out(scenario, rows, folds)
                if predicted is not None:
                    left_out.predicted[name] = np.concatenate(predicted)
            if left_out.predicted:
                every = np.stack(list(left_out.predicted.values()))
                moments = moments_of(left_out.truth, every, left_out.unit)
                kept = refits if len(rows) <= MOST_KEPT else []
                return cls(scenario, fitted, kept, left_out, *moments, prior, seed, contrast)
        empty = np.empty(0)
        return cls(scenario, fitted, [], None, empty, empty, empty, prior, seed, contrast)

    def solve(self, names: Sequence[str]) -> tuple[dict[str, float], ErrorModel]:
        """Return the weights of members that answer, and the law of their errors.

        Raises `ValueError`: If the scenario was never tried.
        """
        tried = self.left_out
        if tried is None:
            msg = f"Nothing in training is in the scenario {self.scenario!r}."
            raise ValueError(msg)
        every = list(tried.predicted)
        key = tuple(name for name in every if name in names)
        if key not in self._solved:
            where = [every.index(name) for name in key]
            weights = stack_weights(
                self.between[np.ix_(range(len(self.own)), where, where)],
                self.across[:, where],
                _prior_weights(key, self.members),
                seed=self.seed,
            )
            predicted = np.stack([tried.predicted[name] for name in key])
            covariates = error_covariates(predicted, weights, tried.posterior)
            spread = ErrorModel.fit(
                tried.truth - covariates.mean,
                tried.noise,
                covariates,
                fold=tried.fold,
                unit=tried.unit,
            )
            self._solved[key] = dict(zip(key, weights.tolist(), strict=True)), spread
        return self._solved[key]

    def standard_errors(self) -> Floats | None:
        """Return left-out errors in the standard deviations stated for them; None if untried."""
        tried = self.left_out
        if tried is None:
            return None
        weights, spread = self.solve(list(tried.predicted))
        predicted = np.stack([tried.predicted[name] for name in weights])
        covariates = error_covariates(predicted, np.array(list(weights.values())), tried.posterior)
        made: Floats = (tried.truth - covariates.mean) / np.maximum(spread.std(covariates), 1e-12)
        return made


def member_predictions(
    members: Members,
    requests: Sequence[RequestRow],
    given: ControlCells | None,
    prior: ControlPrior | None,
    contrast: float = 0.0,
) -> MemberPredictions:
    """Return what each member that answers all requests says, contrasted by what it learned from.

    With a prior on controls, changes lead from the measured control to what is expected: they are
    those of the members and the expected change of the control's measurement. Profiles that
    several members lead to are closed where those learned from are; one is passed on as it is.
    """
    predicted: dict[str, Floats] = {}
    first = next(iter(members.values()))
    profiles = first.profiles
    posterior = np.zeros((len(requests), len(profiles.var_names)))
    novelty = np.full(len(requests), np.nan)
    for name, member in members.items():
        try:
            if isinstance(member, ConditionGP):
                answer = member.predict_changes(requests, given)
                predicted[name], posterior, novelty = answer.mean, answer.std**2, answer.novelty
            else:
                predicted[name] = member.changes(requests, given)
        except REFUSALS:
            continue
    if prior is not None and predicted:
        shifts = np.stack([_shift(prior, one, given, profiles) for one in requests])
        predicted = {name: changes + shifts for name, changes in predicted.items()}
    if contrast and predicted:
        damping = Contrast.of(profiles.deltas, contrast, who="StackedMean")
        predicted = {name: damping(changes) for name, changes in predicted.items()}
    if predicted and len(members) > 1 and profiles.are_shares:
        controls = first.controls(requests, given)
        predicted = {name: renormalized(changes, controls) for name, changes in predicted.items()}
    return MemberPredictions(predicted, posterior, novelty)


def _shift(
    prior: ControlPrior, request: RequestRow, given: ControlCells | None, profiles: TrainingProfiles
) -> Floats:
    if given is None:
        return prior.shift(request.context)
    counts, library, profile = given.control(request.context, profiles)
    own = profile, prior.variance_of(counts, profiles.kind, library)
    return prior.shift(request.context, own)


def _prior_weights(names: Sequence[str], members: Members) -> Floats:
    """Return equal weights of the regression and external members, or else of all."""
    expert = np.array(
        [name not in members or isinstance(members[name], ConditionGP) for name in names]
    )
    chosen = expert if expert.any() else ~expert
    made: Floats = chosen / chosen.sum()
    return made


def error_covariates(predicted: Floats, weights: Floats, posterior: Floats) -> ErrorCovariates:
    """Return the stack's mean and what its error may depend on."""
    mean = np.tensordot(weights, predicted, 1)
    return ErrorCovariates(mean, np.tensordot(weights, (predicted - mean) ** 2, 1), posterior)


def _fitted(
    members: Members,
    profiles: TrainingProfiles,
    *,
    lenient: bool,
    like: Mapping[str, MeanPredictor] = MappingProxyType({}),
) -> Members:
    """Return copies of members that learned from profiles; `lenient` drops those that cannot.

    Regressions choose hyperparameters near those of the member of that name in `like`.
    """
    # which conditions a usual member cannot use is its own affair: no warnings then
    made: Members = {}
    with warnings.catch_warnings():
        if lenient:
            warnings.simplefilter("ignore", UserWarning)
        for name, member in members.items():
            features = getattr(member, "features", None)  # do not change: one for all copies
            try:
                copied = deepcopy(member, {id(features): features})
                other = like.get(name)
                if isinstance(copied, ConditionGP) and isinstance(other, ConditionGP):
                    made[name] = copied.refit(profiles, other)
                else:
                    made[name] = copied.fit_profiles(profiles)
            except REFUSALS:
                if not lenient:
                    raise
    return made


def _answerable(
    folds: Sequence[Fold], refits: Sequence[Members], rows: Sequence[RequestRow]
) -> tuple[list[Fold], list[Members]]:
    """Keep of what folds ask what the regression knows something about, and folds of use."""
    kept = []
    for fold, members in zip(folds, refits, strict=True):
        regressions = [one for one in members.values() if isinstance(one, ConditionGP)]
        asked = [i for i in fold.asked if all(one.knows(rows[i]) for one in regressions)]
        if asked and members:
            kept.append((Fold(fold.removed, np.array(asked, dtype=np.intp)), members))
    return [fold for fold, _ in kept], [members for _, members in kept]


def _leave_out(
    scenario: RequestScenario,
    profiles: TrainingProfiles,
    treated: tuple[list[RequestRow], NDArray[np.intp]],
    folds: Sequence[Fold],
    refits: Sequence[Members],
    prior: ControlPrior | None,
    contrast: float,
) -> LeftOut:
    """Ask the refits of each fold about what it left out; members must answer in all folds."""
    rows, groups = treated
    asked = np.concatenate([fold.asked for fold in folds])
    chosen = [rows[i] for i in asked]
    predicted: dict[str, list[Floats]] = {}
    posterior: list[Floats] = []
    novelty: list[Floats] = []
    for fold, members in zip(folds, refits, strict=True):
        found = member_predictions(members, [rows[i] for i in fold.asked], None, prior, contrast)
        posterior.append(found.posterior)
        novelty.append(found.novelty)
        for name, changes in found.changes.items():
            predicted.setdefault(name, []).append(changes)
    units = {unit: i for i, unit in enumerate(dict.fromkeys(unit_of(scenario, r) for r in chosen))}
    truth = np.stack([profiles.deltas[r.condition][r.context] for r in chosen])
    noise = np.zeros_like(truth)
    if profiles.variances is not None:  # of the control, predictions have to answer for
        noise = profiles.variances[groups[asked]]
    return LeftOut(
        chosen,
        truth,
        noise,
        np.repeat(np.arange(len(folds)), [len(fold.asked) for fold in folds]),
        np.array([units[unit_of(scenario, r)] for r in chosen], dtype=np.intp),
        {name: np.concatenate(p) for name, p in predicted.items() if len(p) == len(folds)},
        np.concatenate(posterior),
        np.concatenate(novelty),
    )
