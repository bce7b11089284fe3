"""One question of a stack: members with and without what was left out, weights, errors."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pandas as pd

from scvi_perturb._errors import SchemaError, UnknownPerturbationError
from scvi_perturb.predictors._condition_gp import ConditionGP
from scvi_perturb.predictors._control_prior import ControlPrior
from scvi_perturb.predictors._questions import Fold, folds_of, unit_of
from scvi_perturb.predictors._stack_spread import Clues, Spread
from scvi_perturb.predictors._stack_weights import moments_of, stack_weights

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._mean import MeanPredictor
    from scvi_perturb.predictors._profiles import TrainingProfiles
    from scvi_perturb.predictors._questions import Question
    from scvi_perturb.predictors._reference import Reference
    from scvi_perturb.predictors._requests import Request

    Floats = NDArray[np.float64]
    Members = dict[str, MeanPredictor]

__all__ = ["LeftOut", "Outside", "QuestionStack", "clues_of", "said_by", "treated_rows"]

#: Why a member does not answer a request.
REFUSALS = (UnknownPerturbationError, SchemaError)


class Outside(Protocol):
    """A member that is trained elsewhere: a generator, whose refits are dear."""

    def left_out(
        self, question: Question, rows: Sequence[Request], folds: Sequence[Fold]
    ) -> list[Floats] | None:
        """Return the changes of each fold's asked rows, by refits without the removed ones.

        None where it does not take part in the question.
        """
        ...


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What was left out, and what members said of it.

    Parameters
    ----------
    rows
        Left-out rows, in the order of all arrays.
    truth, noise
        Measured changes and their sampling variances, `(n_rows, n_genes)`.
    fold, unit
        Of each row, `(n_rows,)`.
    said
        By name of the member, `(n_rows, n_genes)`.
    posterior
        Variance that the regression states, `(n_rows, n_genes)`.
    """

    rows: list[Request]
    truth: Floats
    noise: Floats
    fold: NDArray[np.intp]
    unit: NDArray[np.intp]
    said: dict[str, Floats]
    posterior: Floats


def treated_rows(profiles: TrainingProfiles) -> tuple[list[Request], NDArray[np.intp]]:
    """Return the treated rows that have a control, and the group of each in the profiles."""
    from scvi_perturb.predictors._requests import Request

    pairs = list(zip(profiles.conditions, profiles.contexts, strict=True))
    group = {pair: i for i, pair in enumerate(pairs)}
    rows = [Request(what, own) for what, seen in profiles.deltas.items() for own in seen]
    places = [group[row.condition, row.context] for row in rows]
    return rows, np.array(places, dtype=np.intp)


@dataclass(slots=True)
class QuestionStack:
    """A stack for one question.

    Parameters
    ----------
    question
        What is asked.
    members
        Fitted to all of training, by name.
    refits
        The same without what each fold takes away.
    left_out
        What they were tried on; None where training has nothing to ask the question of.
    between, across, own
        Moments of left-out changes, see `moments_of`; in the order of `left_out.said`.
    prior
        Of the controls of contexts that were never seen perturbed.
    seed
        Of the bootstraps of weights.
    """

    question: Question
    members: Members
    refits: list[Members]
    left_out: LeftOut | None
    between: Floats
    across: Floats
    own: Floats
    prior: ControlPrior | None
    seed: int | None
    _solved: dict[tuple[str, ...], tuple[pd.Series[float], Spread]] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        question: Question,
        profiles: TrainingProfiles,
        members: Members,
        *,
        outside: Mapping[str, Outside],
        n_folds: int,
        seed: int | None,
    ) -> QuestionStack:
        """Fit members to all of training, and to what each fold leaves of it."""
        rows, groups = treated_rows(profiles)
        folds = folds_of(question, rows, n_folds=n_folds, seed=seed)
        fitted = _fitted(members, profiles)
        empty = np.empty(0)
        prior = ControlPrior.of(profiles) if question == "unseen_context" else None
        if len(folds) < 2:
            return cls(question, fitted, [], None, empty, empty, empty, prior, seed)
        refits = [
            _fitted(members, profiles.without(groups[fold.removed].tolist())) for fold in folds
        ]
        left_out = _leave_out(question, profiles, rows, groups, folds, refits, prior)
        for name, member in outside.items():
            said = member.left_out(question, rows, folds)
            if said is not None:
                left_out.said[name] = np.concatenate(said)
        predicted = np.stack(list(left_out.said.values()))
        moments = moments_of(left_out.truth, predicted, left_out.unit)
        return cls(question, fitted, refits, left_out, *moments, prior, seed)

    def solve(self, names: Sequence[str]) -> tuple[pd.Series[float], Spread]:
        """Return the weights of members that answer, and the law of their errors.

        Raises
        ------
        ValueError
            If the question was never tried.
        """
        tried = self.left_out
        if tried is None:
            msg = f"Nothing in training asks the question {self.question!r}."
            raise ValueError(msg)
        every = list(tried.said)
        key = tuple(name for name in every if name in names)
        if key not in self._solved:
            where = [every.index(name) for name in key]
            weights = stack_weights(
                self.between[np.ix_(range(len(self.own)), where, where)],
                self.across[:, where],
                _prior_weights(key, self.members),
                seed=self.seed,
            )
            said = np.stack([tried.said[name] for name in key])
            clues = clues_of(said, weights, tried.posterior)
            spread = Spread.fit(
                tried.truth - clues.mean, tried.noise, clues, fold=tried.fold, unit=tried.unit
            )
            self._solved[key] = pd.Series(weights, index=list(key)), spread
        return self._solved[key]


def said_by(
    members: Members,
    requests: Sequence[Request],
    given: Reference | None,
    prior: ControlPrior | None,
) -> tuple[dict[str, Floats], Floats]:
    """Return what each member that answers all requests says, and the variance it states.

    With a prior on controls, changes lead from the measured control to what is expected: they are
    those of the members and the expected change of the control's measurement.
    """
    said: dict[str, Floats] = {}
    shape = (len(requests), len(next(iter(members.values())).profiles.var_names))
    posterior = np.zeros(shape)
    for name, member in members.items():
        try:
            if isinstance(member, ConditionGP):
                answer = member.answer(requests, given)
                said[name], posterior = answer.mean, answer.std**2
            else:
                said[name] = member.changes(requests, given)
        except REFUSALS:
            continue
    if prior is not None and said:
        profiles = next(iter(members.values())).profiles
        shifts = np.stack([_shift(prior, one, given, profiles) for one in requests])
        said = {name: changes + shifts for name, changes in said.items()}
    return said, posterior


def _shift(
    prior: ControlPrior, request: Request, given: Reference | None, profiles: TrainingProfiles
) -> Floats:
    if given is None:
        return prior.shift(request.context)
    counts = given.counts[given.rows(request.context)]
    own = profiles.profile_of(counts), prior.variance_of(counts, profiles.kind)
    return prior.shift(request.context, own)


def _prior_weights(names: Sequence[str], members: Members) -> Floats:
    """Return equal weights of the regression and outside members; of all where there is neither."""
    expert = np.array(
        [name not in members or isinstance(members[name], ConditionGP) for name in names]
    )
    chosen = expert if expert.any() else ~expert
    made: Floats = chosen / chosen.sum()
    return made


def clues_of(said: Floats, weights: Floats, posterior: Floats) -> Clues:
    """Return the stack's mean and what its error may depend on."""
    mean = np.tensordot(weights, said, 1)
    return Clues(mean, np.tensordot(weights, (said - mean) ** 2, 1), posterior)


def _fitted(members: Members, profiles: TrainingProfiles) -> Members:
    """Return copies of members that learned from profiles; those that cannot are left out."""
    made: Members = {}
    for name, member in members.items():
        try:
            made[name] = deepcopy(member).fit_profiles(profiles)
        except REFUSALS:
            continue
    return made


def _leave_out(
    question: Question,
    profiles: TrainingProfiles,
    rows: Sequence[Request],
    groups: NDArray[np.intp],
    folds: Sequence[Fold],
    refits: Sequence[Members],
    prior: ControlPrior | None,
) -> LeftOut:
    """Ask the refits of each fold about what it left out; members must answer in all folds."""
    asked = np.concatenate([fold.asked for fold in folds])
    chosen = [rows[i] for i in asked]
    said: dict[str, list[Floats]] = {}
    posterior: list[Floats] = []
    for fold, members in zip(folds, refits, strict=True):
        found, variance = said_by(members, [rows[i] for i in fold.asked], None, prior)
        posterior.append(variance)
        for name, changes in found.items():
            said.setdefault(name, []).append(changes)
    units = {unit: i for i, unit in enumerate(dict.fromkeys(unit_of(question, r) for r in chosen))}
    truth = np.stack([profiles.deltas[r.condition][r.context] for r in chosen])
    noise = np.zeros_like(truth)
    if profiles.variances is not None:  # of the control, predictions have to answer for
        noise = profiles.variances[groups[asked]]
    return LeftOut(
        chosen,
        truth,
        noise,
        np.repeat(np.arange(len(folds)), [len(fold.asked) for fold in folds]),
        np.array([units[unit_of(question, r)] for r in chosen], dtype=np.intp),
        {name: np.concatenate(p) for name, p in said.items() if len(p) == len(folds)},
        np.concatenate(posterior),
    )
