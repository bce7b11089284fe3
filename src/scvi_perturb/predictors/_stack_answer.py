"""What a stack says of requests that ask the same question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from scvi_perturb._errors import UnknownPerturbationError
from scvi_perturb.predictors._condition_gp import ConditionGP
from scvi_perturb.predictors._stack_fit import clues_of, said_by
from scvi_perturb.predictors._stack_members import fallback

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.predictors._questions import Question
    from scvi_perturb.predictors._reference import Reference
    from scvi_perturb.predictors._requests import Request
    from scvi_perturb.predictors._stack_fit import QuestionStack

    Floats = NDArray[np.float64]

__all__ = ["StackAnswer", "answer_question"]

_ARRAYS: Final = ("mean", "std", "lower", "upper", "novelty")


@dataclass(slots=True)
class StackAnswer:
    """Changes and what is known of their errors.

    Parameters
    ----------
    mean, std, lower, upper
        Predicted change, standard deviation of its error, ends of its interval,
        `(n_requests, n_genes)`; ends are NaN where errors are not known.
    novelty
        Posterior by prior variance of the regression, 0 to 1; 1 where it does not answer.
    question
        What each request asks; "control" for controls.
    """

    mean: Floats
    std: Floats
    lower: Floats
    upper: Floats
    novelty: Floats
    question: list[str]

    @classmethod
    def empty(cls, n: int, n_genes: int) -> Self:
        """Return the answer to controls: no change, surely."""
        mean, std, lower, upper = np.zeros((4, n, n_genes))
        return cls(mean, std, lower, upper, np.zeros(n), ["control"] * n)

    def put(self, rows: Sequence[int], part: StackAnswer, question: Question) -> None:
        """Put the answer to some requests in its place."""
        for name in _ARRAYS:
            getattr(self, name)[list(rows)] = getattr(part, name)
        for row in rows:
            self.question[row] = question


def answer_question(
    stack: QuestionStack,
    requests: Sequence[Request],
    given: Reference | None,
    *,
    outside: Mapping[str, Floats],
    interval: float | None,
) -> StackAnswer:
    """Return what a stack says of requests, all of its question.

    Members that refuse one of the requests are asked about the others: weights are those of the
    members that answer.

    Raises
    ------
    UnknownPerturbationError, SchemaError
        If no member answers.
    """
    said, posterior = said_by(stack.members, requests, given, stack.prior)
    if len(requests) > 1 and len(said) < len(stack.members):
        # some member refuses some request: each is answered by those that know it
        parts = [
            answer_question(stack, [one], given,
                            outside={k: v[[i]] for k, v in outside.items()}, interval=interval)
            for i, one in enumerate(requests)
        ]  # fmt: skip
        return _joined(parts)
    said |= outside
    tried = stack.left_out
    names = fallback(stack.question) if tried is None else tuple(tried.said)
    names = tuple(name for name in names if name in said)
    if not names:
        _refuse(stack, requests)
    changes = np.stack([said[name] for name in names])
    nothing = np.full(changes.shape[1:], np.nan)
    if tried is None:
        mean = changes.mean(axis=0)
        made = StackAnswer(mean, np.sqrt(posterior), nothing, nothing, np.zeros(0), [])
    else:
        weights, spread = stack.solve(names)
        clues = clues_of(changes, np.asarray(weights), posterior)
        lower = upper = nothing
        if interval is not None:
            centres = _fold_centres(
                stack, requests, given, said, dict(zip(names, weights, strict=True))
            )
            lower, upper = spread.interval(clues, centres, interval)
        made = StackAnswer(clues.mean, spread.std(clues), lower, upper, np.zeros(0), [])
    made.novelty = _novelty(stack, requests, given)
    return made


def _fold_centres(
    stack: QuestionStack,
    requests: Sequence[Request],
    given: Reference | None,
    said: Mapping[str, Floats],
    weights: Mapping[str, float],
) -> Floats:
    """Return what the refits of each fold say; a member that has none says what it said before."""
    centres = []
    for members in stack.refits:
        again, _ = said_by(members, requests, given, stack.prior)
        total = sum(w * again.get(name, said[name]) for name, w in weights.items())
        centres.append(np.asarray(total))
    return np.stack(centres)


def _novelty(stack: QuestionStack, requests: Sequence[Request], given: Reference | None) -> Floats:
    for member in stack.members.values():
        if isinstance(member, ConditionGP):
            try:
                return member.answer(requests, given).novelty
            except UnknownPerturbationError:
                break
    return np.ones(len(requests))


def _refuse(stack: QuestionStack, requests: Sequence[Request]) -> None:
    """Raise what the regression, or else the first member, says of a request."""
    for member in stack.members.values():
        member.changes(requests)
    raise UnknownPerturbationError(str(requests[0].condition), ())


def _joined(parts: Sequence[StackAnswer]) -> StackAnswer:
    mean, std, lower, upper, novelty = (
        np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
    )
    return StackAnswer(mean, std, lower, upper, novelty, [])
