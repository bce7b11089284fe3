"""`StackedMean`: a weighted mean of predictors, its predictions and the report of its weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Final, Self

import numpy as np
import pandas as pd
from scipy.special import ndtri

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data.request import RequestScenario, TrainingCoverage
from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.predictors.gaussian_process.condition_gp import ConditionGP
from scvi_perturb.predictors.request import read_request
from scvi_perturb.predictors.stack.fit import (
    ScenarioStack,
    check_contrast,
    error_covariates,
    member_predictions,
    treated_rows,
)
from scvi_perturb.predictors.stack.intervals import LEVELS, ErrorModel
from scvi_perturb.predictors.stack.scenarios import (
    SCENARIOS,
    AnsweredScenario,
    default_members,
    likely_scenario,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.data.request import RequestRow
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.profiles import Profile
    from scvi_perturb.predictors.request import Conditions, ControlCells
    from scvi_perturb.predictors.stack.fit import ExternalMember, LeftOut

    Floats = NDArray[np.float64]


#: How much of what is gained by a mean of two that are equally accurate is taken for granted.
_AMBIGUITY: Final = 0.85
#: Genes that hardly err are taken for this share of the others.
_LEAST: Final = 0.1
#: Requests answered at a time.
_CHUNK: Final = 1_024
#: Who shares the weight with the regression where training has nothing to try a scenario on.
_SECOND: Final[dict[RequestScenario, tuple[str, ...]]] = {
    "unseen_context": ("context_mean",),
    "context_transfer": ("context_mean",),
    "unseen_combination": ("additive",),
    "dose": ("dose_line",),
    "dose_beyond": ("dose_hill",),
    "unseen_perturbation": ("mean_of_training",),
}
_ARRAYS: Final = ("mean", "std", "lower", "upper", "novelty")


@dataclass(slots=True)
class StackPrediction:
    """Changes and what is known of their errors.

    `mean`, `std`, `lower`, `upper`: Predicted change, standard deviation of its error, ends of its
    interval, `(n_requests, n_genes)`. Where errors were never seen, the last three are those that
    the regression states, and NaN where it is not in the stack. `novelty`: Posterior by prior
    variance of the regression, 0 to 1; NaN where it is not in the stack. `scenario`: What each
    request asks; "control" for controls.
    """

    mean: Floats
    std: Floats
    lower: Floats
    upper: Floats
    novelty: Floats
    scenario: list[AnsweredScenario]

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

    Raises `UnknownPerturbationError, SchemaError`: If no member answers.
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
    names = _answering(stack, predicted, external)
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
        centres = _fold_centres(stack, requests, given, predicted, weights)
        ends = spread.interval(covariates, centres, interval)
    lower, upper = (mean + narrower * (end - mean) for end in ends)
    return StackPrediction(mean, narrower * spread.std(covariates), lower, upper, novelty, [])


def _answering(
    stack: ScenarioStack, predicted: Mapping[str, Floats], external: Mapping[str, Floats]
) -> tuple[str, ...]:
    """Return who has weight: of those tried, or else the usual ones, who answer."""
    if stack.left_out is not None:
        return tuple(n for n in stack.left_out.predicted if n in {*predicted, *external})
    usual = ("condition_gp", *_SECOND.get(stack.scenario, ()))
    return tuple(name for name in usual if name in predicted) or tuple(predicted)


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

    `gap`: Difference of the two predictions, `(n_requests, n_genes)`. `share`: Weight of the
    untried one. `scale`: Standard deviation of the error of the others, same shape. Returns
    `(n_requests, 1)`, from 1/2 to 1.

    Reference: Krogh and Vedelsby, Neural network ensembles, cross validation, and active learning,
    1995.
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
) -> Floats:
    """Return what the refits of each fold say; a member without refits predicts as before.

    Without any refits, the prediction alone, `(1, n_requests, n_genes)`.
    """
    if not stack.refits:
        centre = sum(w * predicted[name] for name, w in weights.items())
        return np.asarray(centre)[None]
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


@checked
class StackedMean(MeanPredictor):
    """Predict by a weighted sum of predictors; the weights depend on what is asked.

    Each request is in one of several scenarios (`RequestScenario`): a context never seen perturbed,
    a combination, a dose, a perturbation never seen. For each, training is asked the same of
    itself: what makes a part of it new is left out, all members are fitted to the rest, and the
    weights, none of them negative and their sum one, are those of least squared error on what was
    left out. `no_change` is a member, so that effects shrink where nothing can be said of them.
    With `profile="pseudobulk"` what members say is first scaled to counts that sum to ten thousand.

    The errors made there also tell how far predictions may be off: a variance for each gene in
    each condition, from the size of the predicted change, the disagreement of members and the
    regression's own posterior, scaled so that intervals cover what was left out (conformal, CV+).
    Coverage is on average over genes and over new conditions that are as training's are to each
    other; where there are few, or the request is of another kind, nothing is promised.

    Where training has nothing to try a scenario on, `condition_gp` and one trivial prediction share
    the weight, and intervals are those that the regression states. What was measured in the context
    asked for is the regression's alone, which weighs the measurement against what is like it.

    Parameters
    ----------
    features
        What is known about perturbations, or None.
    members
        Predictors, not fitted, by name, in place of the usual ones; all with this `profile`.
    scenarios
        Questions to weigh members for in `fit`; for others it is done when they are first asked.
    n_folds
        Number of folds; contexts are left out one at a time if there are twice as many at most.
    seed
        Seed of folds and of the bootstraps over which weights are averaged.
    external
        Members that are trained elsewhere, by name.
    contrast
        How much of what many perturbations have in common is taken off the prediction of one never
        seen, see `Contrast`; other scenarios are not touched. 0 is the prediction of
        least error. Above, a perturbation is told from others more often, at a larger error; the
        weights are those of least error given the contrast, and intervals cover it.
    profile
        What the mean of a population is; see `MeanPredictor`.

    References
    ----------
    Breiman, Stacked regressions, Machine Learning 1996; van der Laan, Polley and Hubbard, Super
    learner, Statistical Applications in Genetics and Molecular Biology 2007; Barber et al.,
    Predictive inference with the jackknife+, Annals of Statistics 2021.
    """

    name: ClassVar[str] = "stacked_mean"
    needs_variances = True

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        members: Mapping[str, MeanPredictor] | None = None,
        scenarios: Sequence[RequestScenario] = (),
        n_folds: int = 10,
        seed: int | None = 0,
        external: Mapping[str, ExternalMember] | None = None,
        contrast: float = 0.0,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        for scenario in scenarios:
            check_choice("scenarios", scenario, SCENARIOS)
        if n_folds < 2:
            msg = f"n_folds={n_folds}; expected at least 2."
            raise ValueError(msg)
        if members is not None and not members:
            msg = "members is empty; name one at least, or leave it out for the usual ones."
            raise ValueError(msg)
        others = {name for name, one in (members or {}).items() if one.profile != profile}
        if others:
            msg = f"Members {sorted(others)} have another profile than {profile!r}."
            raise SchemaError(msg)
        self.features = features
        self.members = None if members is None else dict(members)
        self.scenarios = scenarios
        self.n_folds = n_folds
        self.seed = seed
        self.external = dict(external or {})
        self.contrast = check_contrast(contrast)
        if contrast and external:
            msg = f"contrast={contrast} has no meaning for members of elsewhere, {list(external)}."
            raise ValueError(msg)
        self._stacks: dict[RequestScenario, ScenarioStack] = {}

    @property
    def weights_(self) -> pd.DataFrame:
        """Weights of members, a row for each scenario that was asked for and tried on training."""
        return weights_of(self._stacks)

    @property
    def calibration_(self) -> pd.DataFrame:
        """How well each scenario was answered, and how intervals cover; see `report_of`."""
        return report_of(self._stacks)

    def _learn(self) -> None:
        super()._learn()
        if not self.deltas:
            msg = "StackedMean found no training condition that has a control to change from."
            raise SchemaError(msg)
        self._coverage = TrainingCoverage.of(treated_rows(self.profiles)[0])
        self._stacks = {}
        for scenario in self.scenarios:
            self.weigh(scenario)

    def weigh(self, scenario: RequestScenario) -> ScenarioStack:
        """Return the stack for a scenario, made when it is first asked."""
        if scenario not in self._stacks:
            usual = default_members(scenario, self.features, self.profile)
            self._stacks[scenario] = ScenarioStack.fit(
                scenario,
                self.profiles,
                usual if self.members is None else self.members,
                external=self.external,
                n_folds=self.n_folds,
                seed=self.seed,
                lenient=self.members is None,
                contrast=self.contrast if scenario == "unseen_perturbation" else 0.0,
            )
        return self._stacks[scenario]

    def likely_scenario(self) -> RequestScenario | None:
        """Return the scenario that training suggests will be asked; None if it suggests none."""
        rows, _ = treated_rows(self.profiles)
        return likely_scenario(
            rows, n_folds=self.n_folds, seed=self.seed, has_features=self.features is not None
        )

    def max_novelty(self, scenario: AnsweredScenario) -> float | None:
        """Return the largest novelty of what was left out for a scenario; None if nothing was."""
        if scenario == "control":
            return 0.0
        tried = self.weigh(scenario).left_out
        return None if tried is None else float(tried.novelty.max())

    def predict(
        self, conditions: Conditions, *, reference: AnnData | None = None, interval: float = 0.9
    ) -> AnnData:
        """Return the mean of each condition, its error, and an interval.

        Parameters
        ----------
        conditions, reference
            As in `MeanPredictor.predict`.
        interval
            Coverage of the interval, between 0 and 1.

        Returns
        -------
        AnnData as of `MeanPredictor.predict`, and besides the layers `std`, `lower` and `upper` of
        the change, in its units; `obs["scenario"]`, what was asked; `obs["regime"]`, what is new of
        it; `obs["novelty"]`, posterior by prior variance of the regression, NaN where `members`
        holds none, and `obs["support"]`.

        Raises
        ------
        UnknownPerturbationError
            If no member knows a perturbation.
        SchemaError
            If the request or the reference does not fit what was learned.
        ValueError
            If `interval` is not between 0 and 1.
        """
        requests, given = read_request(conditions, reference, self.profiles)
        found = self.predict_changes(requests, given, interval=interval)
        made = self._to_anndata(requests, given, found.mean)
        for layer in ("std", "lower", "upper"):
            made.layers[layer] = getattr(found, layer).astype(np.float32)
        made.obs["scenario"] = pd.Categorical(found.scenario)
        made.obs["regime"] = pd.Categorical([self._coverage.regime(one) for one in requests])
        made.obs["novelty"] = found.novelty
        made.obs["support"] = 1 - found.novelty
        return made

    def _changes(
        self, requests: Sequence[RequestRow], given: ControlCells | None
    ) -> NDArray[np.float64]:
        return self.predict_changes(requests, given, interval=None).mean

    def predict_changes(
        self,
        requests: Sequence[RequestRow],
        given: ControlCells | None = None,
        *,
        interval: float | None = 0.9,
        external: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> StackPrediction:
        """Predict requests, each by the stack of its scenario.

        Parameters
        ----------
        requests, given
            What is asked, and control cells to start from, if any.
        interval
            Coverage; None leaves intervals out.
        outside
            What outside members say of the requests, `(n_requests, n_genes)` by name; those that
            say nothing have no weight.
        """
        made = StackPrediction.empty(len(requests), len(self.profiles.var_names))
        for scenario in SCENARIOS:
            every = [i for i, request in enumerate(requests) if self._asks(request) == scenario]
            for start in range(0, len(every), _CHUNK):
                rows = every[start : start + _CHUNK]
                predicted = {name: values[rows] for name, values in (external or {}).items()}
                some = [requests[i] for i in rows]
                stack = self.weigh(scenario)
                part = predict_scenario(stack, some, given, external=predicted, interval=interval)
                made.put(rows, part, scenario)
        return made

    def _asks(self, request: RequestRow) -> RequestScenario | None:
        return None if request.condition.is_control else self._coverage.scenario(request)
