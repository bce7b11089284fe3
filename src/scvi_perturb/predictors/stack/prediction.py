"""Predictions of a stack, and the report of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

import numpy as np
import pandas as pd
from scipy.special import ndtri

from scvi_perturb._core import UnknownPerturbationError
from scvi_perturb.predictors.gaussian_process.condition_gp import ConditionGP
from scvi_perturb.predictors.stack.fit import error_covariates, member_predictions
from scvi_perturb.predictors.stack.intervals import LEVELS, ErrorModel
from scvi_perturb.predictors.stack.members import fallback

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.request import RequestRow
    from scvi_perturb.predictors.request import ControlCells
    from scvi_perturb.predictors.stack.fit import LeftOut, ScenarioStack
    from scvi_perturb.predictors.stack.scenarios import RequestScenario

    Floats = NDArray[np.float64]


#: How much of what is gained by a mean of two that are equally accurate is taken for granted.
_AMBIGUITY: Final = 0.85
#: Genes that hardly err are taken for this share of the others.
_LEAST: Final = 0.1
_ARRAYS: Final = ("mean", "std", "lower", "upper", "novelty")


@dataclass(slots=True)
class StackPrediction:
    """Changes and what is known of their errors.

    Parameters
    ----------
    mean, std, lower, upper
        Predicted change, standard deviation of its error, ends of its interval,
        `(n_requests, n_genes)`. Where errors were never seen, the last three are those that the
        regression states, and NaN where it is not in the stack.
    novelty
        Posterior by prior variance of the regression, 0 to 1; NaN where it is not in the stack.
    scenario
        What each request asks; "control" for controls.
    """

    mean: Floats
    std: Floats
    lower: Floats
    upper: Floats
    novelty: Floats
    scenario: list[RequestScenario | Literal["control"]]

    @classmethod
    def empty(cls, n: int, n_genes: int) -> Self:
        """Return the answer to controls: no change, surely."""
        mean, std, lower, upper = np.zeros((4, n, n_genes))
        return cls(mean, std, lower, upper, np.zeros(n), ["control"] * n)

    def put(self, rows: Sequence[int], part: StackPrediction, scenario: RequestScenario) -> None:
        """Put the answer to some requests in its place."""
        for name in _ARRAYS:
            getattr(self, name)[list(rows)] = getattr(part, name)
        for row in rows:
            self.scenario[row] = scenario


def predict_scenario(
    stack: ScenarioStack,
    requests: Sequence[RequestRow],
    given: ControlCells | None,
    *,
    external: Mapping[str, Floats],
    interval: float | None,
) -> StackPrediction:
    """Return what a stack says of requests, all of its scenario.

    Members that refuse one of the requests are asked about the others: weights are those of the
    members that answer. What the regression refuses is refused: of a perturbation without data and
    features nobody knows anything, also where some member would say something.

    Raises
    ------
    UnknownPerturbationError, SchemaError
        If no member answers.
    """
    predicted, posterior, novelty = member_predictions(
        stack.members, requests, given, stack.prior, stack.contrast
    )
    if len(requests) > 1 and len(predicted) < len(stack.members):
        # some member refuses some request: each is answered by those that know it
        parts = [
            predict_scenario(stack, [one], given,
                            external={k: v[[i]] for k, v in external.items()}, interval=interval)
            for i, one in enumerate(requests)
        ]  # fmt: skip
        return _joined(parts)
    tried = stack.left_out
    names = (
        tuple(predicted)
        if tried is None
        else tuple(n for n in tried.predicted if n in {*predicted, *external})
    )
    if tried is None:
        names = tuple(name for name in fallback(stack.scenario) if name in predicted) or names
    if not names or any(
        isinstance(one, ConditionGP) and name not in predicted
        for name, one in stack.members.items()
    ):
        _refuse(stack, requests)
    predicted |= external
    if tried is None:
        if stack.scenario != "seen":  # what was measured needs nobody else's opinion
            names = (*names, *external)
        mean = np.mean([predicted[name] for name in names], axis=0)
        return _untried_prediction(stack, mean, posterior, novelty, interval)
    tried_weights, spread = stack.solve(names)
    changes = np.stack([predicted[name] for name in tried_weights])
    covariates = error_covariates(changes, np.array(list(tried_weights.values())), posterior)
    untried = [name for name in external if name not in names]
    weights = with_untried(tried_weights, untried)
    mean = np.sum([w * predicted[name] for name, w in weights.items()], axis=0)
    narrower = np.ones((len(mean), 1))
    if untried:
        gap = covariates.mean - np.mean([predicted[name] for name in untried], axis=0)
        share = sum(weights[name] for name in untried)
        narrower = agreement_factor(gap, share, spread.scale(covariates))
    ends = (np.full(mean.shape, np.nan),) * 2
    if interval is not None:
        centres = _fold_centres(stack, requests, given, predicted, weights, spread)
        ends = spread.interval(covariates, centres, interval)
    lower, upper = (mean + narrower * (end - mean) for end in ends)
    return StackPrediction(mean, narrower * spread.std(covariates), lower, upper, novelty, [])


def _untried_prediction(
    stack: ScenarioStack, mean: Floats, posterior: Floats, novelty: Floats, interval: float | None
) -> StackPrediction:
    """Return a mean whose errors were never seen, with the errors that the regression states."""
    regression = any(isinstance(one, ConditionGP) for one in stack.members.values())
    std = np.sqrt(posterior) if regression else np.full(mean.shape, np.nan)
    reach = std * (np.nan if interval is None else ndtri((1 + interval) / 2))
    return StackPrediction(mean, std, mean - reach, mean + reach, novelty, [])


def agreement_factor(gap: Floats, share: float, scale: Floats) -> Floats:
    """Return the factor of intervals where a member that was never tried takes a share.

    The squared error of a mean of two predictions is the mean of theirs less the ambiguity
    `share (1 - share) gap^2`. Were the untried one as accurate as the others, all of that would
    come off their variance. It is a little worse, as measured on simulated screens, and 0.85 of it
    comes off; in the units in which errors are stated, of all genes together.

    Parameters
    ----------
    gap
        Difference of the two predictions, `(n_requests, n_genes)`.
    share
        Weight of the untried one.
    scale
        Standard deviation of the error of the others, same shape.

    Returns
    -------
    numpy.ndarray
        `(n_requests, 1)`, from 1/2 to 1.

    References
    ----------
    Krogh and Vedelsby, Neural network ensembles, cross validation, and active learning, 1995.
    """
    size = np.sqrt((scale**2).mean(axis=1, keepdims=True))
    units = np.maximum(scale, np.maximum(_LEAST * size, 1e-12))
    apart = ((gap / units) ** 2).mean(axis=1, keepdims=True)
    left = 1 - _AMBIGUITY * share * (1 - share) * apart
    made: Floats = np.sqrt(np.clip(left, 0.25, 1.0))
    return made


def with_untried(weights: Mapping[str, float], untried: Sequence[str]) -> dict[str, float]:
    """Give members that were never tried on what was left out equal parts with all the others."""
    part = 1 / (1 + len(untried))
    return {name: part * w for name, w in weights.items()} | dict.fromkeys(untried, part)


def _fold_centres(
    stack: ScenarioStack,
    requests: Sequence[RequestRow],
    given: ControlCells | None,
    predicted: Mapping[str, Floats],
    weights: Mapping[str, float],
    spread: ErrorModel,
) -> Floats:
    """Return what the refits of each fold say; a member without refits predicts as before."""
    if not stack.refits:
        centre = sum(w * predicted[name] for name, w in weights.items())
        return np.stack([np.asarray(centre)] * len(spread.units))
    centres = []
    for members in stack.refits:
        again = member_predictions(members, requests, given, stack.prior, stack.contrast).changes
        total = sum(w * again.get(name, predicted[name]) for name, w in weights.items())
        centres.append(np.asarray(total))
    return np.stack(centres)


def _refuse(stack: ScenarioStack, requests: Sequence[RequestRow]) -> None:
    """Raise what the regression, or else the first member, says of a request."""
    order = sorted(stack.members.values(), key=lambda one: not isinstance(one, ConditionGP))
    for member in order:
        member.changes(requests)
    raise UnknownPerturbationError(str(requests[0].condition), ())


def _joined(parts: Sequence[StackPrediction]) -> StackPrediction:
    mean, std, lower, upper, novelty = (
        np.concatenate([getattr(part, name) for part in parts]) for name in _ARRAYS
    )
    return StackPrediction(mean, std, lower, upper, novelty, [])


def weights_of(stacks: Mapping[RequestScenario, ScenarioStack]) -> pd.DataFrame:
    """Return the weights of members, a row a scenario; NaN for those who do not take part."""
    found = {
        name: stack.solve(list(stack.left_out.predicted))[0]
        for name, stack in stacks.items()
        if stack.left_out is not None
    }
    return pd.DataFrame.from_dict(found, orient="index").rename_axis("scenario")


def report_of(stacks: Mapping[RequestScenario, ScenarioStack]) -> pd.DataFrame:
    """Return how each scenario was answered where the answer is known, a row for each.

    Columns: `n_units`, the number of exchangeable units (contexts or conditions) left out in turn;
    `error`, squared error by squared change, sampling variance subtracted from both, of the stack
    with the weights that it has, NaN where there is no change; `best_member` and
    `best_member_error`; and `coverage_50` to `coverage_95`, the share of left-out changes inside
    their intervals when the law of errors is known from the other folds alone, the noise of what
    was measured added to it.
    """
    rows = {
        name: _row(stack, stack.left_out)
        for name, stack in stacks.items()
        if stack.left_out is not None
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("scenario")


def _row(stack: ScenarioStack, tried: LeftOut) -> dict[str, object]:
    weights, _ = stack.solve(list(tried.predicted))
    predicted = np.stack([tried.predicted[name] for name in weights])
    covariates = error_covariates(predicted, np.array(list(weights.values())), tried.posterior)
    size = float((tried.truth**2 - tried.noise).sum())
    size = size if size > 0 else np.nan  # no change is to be told from noise
    errors = {
        name: float(((tried.truth - own) ** 2 - tried.noise).sum()) / size
        for name, own in tried.predicted.items()
    }
    best = min(errors, key=lambda name: errors[name])
    made: dict[str, object] = {
        "n_units": len(np.unique(tried.unit)),
        "error": float(((tried.truth - covariates.mean) ** 2 - tried.noise).sum()) / size,
        "best_member": best,
        "best_member_error": errors[best],
    }
    error = tried.truth - covariates.mean
    covered = np.zeros((len(LEVELS), *error.shape), dtype=bool)
    for fold in np.unique(tried.fold):
        own = tried.fold == fold
        spread = ErrorModel.fit(
            error[~own],
            tried.noise[~own],
            covariates.some(~own),
            fold=tried.fold[~own],
            unit=tried.unit[~own],
        )
        rank = spread.rank(covariates.some(own), error[own], tried.noise[own])
        for i, level in enumerate(LEVELS):
            covered[i, own] = rank <= level
    for i, level in enumerate(LEVELS):
        made[f"coverage_{100 * level:.0f}"] = float(covered[i].mean())
    return made
