"""`StackedMean`: a weighted mean of predictors."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import pandas as pd

from scvi_perturb._core import SchemaError, check_choice
from scvi_perturb.predictors.base import MeanPredictor
from scvi_perturb.predictors.request import read_request
from scvi_perturb.predictors.stack.fit import ScenarioStack, check_contrast, treated_rows
from scvi_perturb.predictors.stack.members import default_members
from scvi_perturb.predictors.stack.prediction import (
    StackPrediction,
    predict_scenario,
    report_of,
    weights_of,
)
from scvi_perturb.predictors.stack.scenarios import (
    SCENARIOS,
    RequestScenario,
    TrainingCoverage,
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
    from scvi_perturb.predictors.stack.fit import ExternalMember


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

    def max_novelty(self, scenario: RequestScenario | Literal["control"]) -> float | None:
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
        the change, in its units; `obs["scenario"]`, what was asked; `obs["novelty"]`, posterior by
        prior variance of the regression, NaN where `members` holds none, and `obs["support"]`.

        Raises
        ------
        UnknownPerturbationError
            If no member knows a perturbation.
        SchemaError
            If the request or the reference does not fit what was learned.
        ValueError
            If `interval` is not between 0 and 1.
        """
        if not 0 < interval < 1:
            msg = f"interval={interval} must lie between 0 and 1, e.g. 0.9."
            raise ValueError(msg)
        requests, given = read_request(conditions, reference, self.profiles)
        found = self.predict_changes(requests, given, interval=interval)
        made = self._to_anndata(requests, given, found.mean)
        for layer in ("std", "lower", "upper"):
            made.layers[layer] = getattr(found, layer).astype(np.float32)
        made.obs["scenario"] = pd.Categorical(found.scenario)
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
            rows = [i for i, request in enumerate(requests) if self._asks(request) == scenario]
            if rows:
                predicted = {name: values[rows] for name, values in (external or {}).items()}
                some = [requests[i] for i in rows]
                stack = self.weigh(scenario)
                part = predict_scenario(stack, some, given, external=predicted, interval=interval)
                made.put(rows, part, scenario)
        return made

    def _asks(self, request: RequestRow) -> RequestScenario | None:
        return None if request.condition.is_control else self._coverage.scenario(request)
