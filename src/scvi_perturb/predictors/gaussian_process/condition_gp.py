"""`ConditionGP`: a Gaussian process over conditions in closed form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self, TypeAlias, cast

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.data.request import RequestRow
from scvi_perturb.predictors.base import MeanPredictor, learned
from scvi_perturb.predictors.gaussian_process.inducing import MOST_EXACT, Inducing
from scvi_perturb.predictors.gaussian_process.kernel import (
    ConditionKernel,
    Contexts,
    Points,
    Rows,
    Search,
    chunks,
)
from scvi_perturb.predictors.gaussian_process.signal import PSEUDOCOUNTS, Spectrum, calibration
from scvi_perturb.predictors.profiles import renormalized
from scvi_perturb.predictors.request import read_request

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.gaussian_process.kernel import Fitted
    from scvi_perturb.predictors.gaussian_process.signal import Outputs, Scale, Tune
    from scvi_perturb.predictors.profiles import Profile, TrainingProfiles
    from scvi_perturb.predictors.request import Conditions, ControlCells

    Floats: TypeAlias = NDArray[np.float64]


#: Requests answered at a time.
_CHUNK: Final = 512

#: "row": a condition in a context; "condition": a condition in all contexts; "perturbation": a set
#: of names, with all its doses, kinds, times and contexts; "context": all that was seen in it.
LeaveOut = Literal["auto", "row", "condition", "perturbation", "context"]

_KEYS: dict[str, Callable[[RequestRow], Any]] = {
    "row": lambda row: row,
    "condition": lambda row: row.condition,
    "perturbation": lambda row: tuple(sorted(set(row.condition.names))),
    "context": lambda row: row.context,
}


def groups_of(rows: Sequence[RequestRow], leave_out: LeaveOut) -> list[NDArray[np.intp]]:
    """Return the rows of each group that is left out together, in the order of first rows."""
    found: dict[Any, list[int]] = {}
    for i, row in enumerate(rows):
        found.setdefault(_KEYS[leave_out](row), []).append(i)
    return [np.array(members) for members in found.values()]


def default_leave_out(rows: Sequence[RequestRow], *, has_features: bool) -> LeaveOut:
    """Return what to leave out, by what such data are most likely to be asked.

    "context", where every condition was seen in two contexts or more and there are no more
    conditions than contexts; else "perturbation", if there are features to predict one from; else
    "condition", if combinations or doses relate conditions to each other; else "row".
    """
    conditions = {row.condition for row in rows}
    contexts = {row.context for row in rows}
    if len(rows) >= 2 * len(conditions) and 1 < len(contexts) >= len(conditions):
        seen = groups_of(rows, "condition")
        if min(map(len, seen)) >= 2:
            return "context"
    if has_features:
        return "perturbation"
    if len({part.name for c in conditions for part in c.components}) < len(conditions):
        return "condition"
    return "row"


@dataclass(frozen=True, slots=True)
class GPPrediction:
    """Changes with their errors.

    `mean`, `std`: Predicted change and its standard deviation, `(n, n_genes)`. `novelty`: Posterior
    by prior variance, 0 to 1, `(n,)`.
    """

    mean: Floats
    std: Floats
    novelty: Floats


@dataclass(frozen=True, slots=True)
class Posterior:
    """A kernel, its training points, and their outputs.

    `kernel`, `points`, `scale`, `outputs`, `fitted`: What was learned; outputs are changes on the
    scale. `weights`: A kernel to the training points times these is the mean of outputs, `(n_rows,
    n_outputs)`. `calibration`: Squared error of what was left out by the variance that was stated
    for it. Stated variances are multiplied by it.
    """

    kernel: ConditionKernel
    points: Points
    scale: Scale
    outputs: Outputs
    fitted: Fitted
    weights: Floats
    calibration: float

    @classmethod
    def learn(
        cls,
        rows: Rows,
        *,
        features: PerturbationFeatures | None,
        tune: Tune,
        n_components: int | None,
        n_tuning: int,
        pseudocounts: Sequence[float],
        like: Mapping[str, float] | None = None,
    ) -> Posterior:
        """Choose hyperparameters and the scale on some rows, and fit all.

        Those in `like` were chosen for nearly the same rows: the search starts there. Where there
        is one group alone, nothing can be left out: the marginal likelihood decides, and the scale
        is that of the first pseudocount.
        """
        points = Points.of(rows.requests, rows.contexts)
        conditions = [request.condition for request in rows.requests]
        kernel = ConditionKernel.learn(points, conditions, features)
        search = Search.of(rows, kernel, tune=tune, n_components=n_components, n_tuning=n_tuning)
        scale, outputs, fitted = search.best(pseudocounts, like)
        chosen, members = search.chosen, search.members
        tuned_on = cast("Spectrum", fitted.spectrum)  # of few rows: one decomposition
        stated = calibration(tuned_on, outputs.subset(chosen), fitted.signal, members)
        if len(rows.requests) > MOST_EXACT:
            fitted = replace(fitted, spectrum=Inducing.of(kernel, points, outputs, fitted))
        elif len(chosen) < len(rows.requests):
            within = kernel.between(points, points)(fitted.theta) / fitted.unit
            spectrum = Spectrum.of(within, outputs.row_noise, outputs.values)
            fitted = replace(fitted, spectrum=spectrum)
        weights = fitted.spectrum.weights(fitted.signal.ratios)
        return cls(kernel, points, scale, outputs, fitted, weights, stated)

    @property
    def hyperparameters(self) -> dict[str, float]:
        """Names and values of the hyperparameters."""
        return dict(self.fitted.theta) | {
            "pseudocount": self.scale.pseudocount,
            "ratio": self.ratio,
            "calibration": self.calibration,
        }

    @property
    def ratio(self) -> float:
        """Noise by signal variance over all outputs."""
        signal = self.fitted.signal
        return float((signal.scales * signal.ratios).sum() / signal.scales.sum())

    def points_of(self, requests: Sequence[RequestRow], contexts: Contexts | None) -> Points:
        """Take requests apart; contexts of a reference replace those of training."""
        known = self.points.contexts
        if contexts is None:
            contexts = known
            if known.profiles is None:
                contexts = known.with_unknown(request.context for request in requests)
        return Points.of(requests, contexts)

    def mean(self, points: Points, controls: Floats) -> Floats:
        """Return predicted changes alone, from control profiles, both `(n, n_genes)`."""
        made = [
            self._values(self._compared(points.some(own))) for own in chunks(len(controls), _CHUNK)
        ]
        return self.scale.back(self.outputs.genes(np.concatenate(made)), controls)

    def at(self, points: Points, controls: Floats) -> GPPrediction:
        """Return the posterior at points, of changes from control profiles, `(n, n_genes)`.

        Standard deviations are brought back from the scale to first order.
        """
        parts = [self._at(points.some(own), controls[own]) for own in chunks(len(controls), _CHUNK)]
        if len(parts) == 1:
            return parts[0]
        mean, std, novelty = (
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("mean", "std", "novelty")
        )
        return GPPrediction(mean, std, novelty)

    def _at(self, points: Points, controls: Floats) -> GPPrediction:
        signal, outputs = self.fitted.signal, self.outputs
        asked = self._compared(points)
        prior = np.diagonal(self._between(points, points))[:, None]
        ratios, which = np.unique(signal.ratios, return_inverse=True)
        explained = self.fitted.spectrum.explained(asked, ratios)
        left = np.clip(prior - explained, 0.0, prior)[:, which] * signal.scales
        novelty = left.sum(axis=1) / np.maximum(prior[:, 0] * signal.scales.sum(), 1e-300)
        if outputs.noise is None:
            # what is peculiar to a condition is not to be told from its noise
            left = left + signal.scales * signal.ratios
        variances = self.calibration * outputs.gene_variances(left) + outputs.rest
        mean = self.scale.back(outputs.genes(self._values(asked)), controls)
        std = np.sqrt(variances) / self.scale.steepness(controls + mean)
        return GPPrediction(mean, std, np.clip(novelty, 0.0, 1.0))

    def covariance(self, points: Points) -> tuple[Floats, Floats, Floats]:
        """Return posterior and prior covariance of points, and the prior variance of genes."""
        prior = self._between(points, points)
        spectrum = self.fitted.spectrum
        explained = spectrum.explained_jointly(self._compared(points), self.ratio)
        scale = self.outputs.gene_variances(self.fitted.signal.scales[None, :])[0]
        scale = self.calibration * scale
        return prior - explained, prior, scale

    def _compared(self, points: Points) -> Any:  # noqa: ANN401 - what the spectrum takes
        spectrum = self.fitted.spectrum
        if isinstance(spectrum, Inducing):
            return spectrum.compared(points)
        return self._between(points, self.points)

    def _values(self, asked: Any) -> Floats:  # noqa: ANN401 - as above
        return self.fitted.spectrum.predicted(asked, self.weights)

    def _between(self, left: Points, right: Points) -> Floats:
        return self.kernel.between(left, right)(self.fitted.theta) / self.fitted.unit


@dataclass(frozen=True, slots=True)
class ConditionCovariance:
    """How errors of predicted changes go together.

    The covariance of gene `g` between conditions `i` and `j` is `shared[i, j] * gene_scale[g]`.

    `shared`: Posterior covariance of conditions, in units of the prior variance of an average
    training condition, `(n_conditions, n_conditions)`. `prior`: The same before any data.
    `gene_scale`: Prior variance of each gene, `(n_genes,)`, of changes on the scale on which
    effects add: that of `hyperparameters_["pseudocount"]`.
    """

    shared: NDArray[np.float64]
    prior: NDArray[np.float64]
    gene_scale: NDArray[np.float64]


@checked
class ConditionGP(MeanPredictor):
    """Predict changes by a Gaussian process over conditions in contexts.

    Rows are all training conditions in all contexts: their changes from control, each with the
    sampling variance that its cells and its controls give it. Two rows are as alike as

    - `shared`: a shift that all conditions have, and `shift`: one that each component adds;
    - `components`: the components that both have, so that effects add up;
    - `features:<modality>`: the similarity of their components' features, Tanimoto's or Gaussian;
    - `linear:<modality>`: the product of these, where they may be negative and all of training have
      them, with the mean of training taken off: effects that are linear in features;
    - `interactions`: products of the similarities of two components each;

    all with weights of their own, times `(1 + context * k) / (1 + context)`, where `k` is Gaussian
    in the distance of control profiles, `exp(-d**2 / (context_scale * median d**2))`. Components
    are compared at their doses by a Gaussian of the difference of logarithms (`dose_scale`) times
    the Hill occupancy of both (`half_dose`, in units of the mean dose; 0 is none); times by a
    Gaussian of the difference of `log1p`. Sums over components are divided by their number to the
    power `saturation`: 0 is additive, 1 their mean. Components of different kinds share `shared`
    alone.

    No change, the mean of contexts, the additive prediction and kernel ridge regression are special
    cases, between which tuning chooses: for any kernel of a grid that is searched coordinate by
    coordinate, the error of what is left out follows from one eigendecomposition.

    Few rows are predicted gene by gene, each with its own noise and signal; many, or those whose
    noise is unknown, by their leading components. Noise is that of the row times that of the
    gene, which is what makes one decomposition enough. Control cells are shared by the conditions
    of a context; their noise is counted as if it were not. With `profile="pseudobulk"` the profiles
    that changes lead to are scaled to counts that sum to ten thousand.

    Hyperparameters are tuned on at most `n_tuning` rows, whole groups drawn at random. Up to 4,000
    rows the posterior is exact, by one eigendecomposition in double precision, whose time grows
    with the cube of rows. Beyond, what different perturbations share goes by at most 2,000 inducing
    rows; within a perturbation, over its doses and contexts, nothing is left out (PIC). Time and
    memory then grow with rows. The fit holds which it was: `posterior.fitted.spectrum` is a
    `Spectrum` or an `Inducing`.

    Where training has a single context, nothing tells how much contexts matter: others are taken
    for the same, and `novelty` does not count them.

    Parameters
    ----------
    features
        What is known about perturbations, or None. A component that was not seen in training is
        predicted from them; without, it is refused, since only the shared shift would be left.
    tune
        "loo": least squared error of what is left out; "marginal": largest marginal likelihood.
    leave_out
        What is left out together: "row", a condition in a context; "condition", in all contexts;
        "perturbation", a set of names with all doses, kinds, times and contexts; "context". It
        should be what is asked later. "auto" takes "context" where there are no more conditions
        than contexts and each was seen in two; else "perturbation" with features; else
        "condition" where combinations or doses relate conditions; else "row".
    n_components
        Number of leading components; None chooses.
    n_tuning
        Most rows to tune on.
    pseudocount
        Effects add on the scale of `log(x + pseudocount)`, with `x` in counts per ten thousand,
        where profiles are `log(x + 1)`. A small one is right where effects are factors also of
        weakly expressed genes, as those of pairs often are; it lets in more of their noise. None
        takes 1, unless 0.3 or 0.1 predict what is left out clearly better (paired t-test over
        groups, 2.5 %), where noise is known. Of use for `profile="pseudobulk"` alone.
    profile
        What the mean of a population is; see `MeanPredictor`. The noise of "effects" is not known:
        the ratio of noise to signal of each component is a hyperparameter too, and `std` contains
        what is peculiar to a condition, which it cannot be told from.

    Attributes
    ----------
    leave_out_
        What was left out together in tuning, after `fit`.

    Raises
    ------
    ValueError
        If a choice is not known, a number below 1, or the pseudocount not positive.

    References
    ----------
    Rasmussen and Williams, Gaussian Processes for Machine Learning, MIT Press 2006, sections 2.2,
    5.4.1 and 5.4.2; Snelson and Ghahramani, Local and global sparse Gaussian process
    approximations, AISTATS 2007.
    """

    name: ClassVar[str] = "condition_gp"
    needs_variances = True
    leave_out_: LeaveOut

    def __init__(
        self,
        features: PerturbationFeatures | None = None,
        *,
        tune: Tune = "loo",
        leave_out: LeaveOut = "auto",
        n_components: int | None = None,
        n_tuning: int = 800,
        pseudocount: float | None = None,
        profile: Profile = "pseudobulk",
    ) -> None:
        super().__init__(profile=profile)
        for argument, value in (("n_components", n_components), ("n_tuning", n_tuning)):
            if value is not None and value < 1:
                msg = f"{argument}={value}; expected at least 1."
                raise ValueError(msg)
        self.features = features
        self.tune: Tune = tune
        self.leave_out: LeaveOut = leave_out
        self.n_components = n_components
        self.n_tuning = n_tuning
        self.pseudocount = pseudocount
        self._posterior: Posterior | None = None
        #: Names with their kinds, and kinds, of training.
        self._seen: set[tuple[str, str]] = set()
        self._kinds: set[str] = set()

    @property
    def posterior(self) -> Posterior:
        """The fitted process.

        Raises
        ------
        NotTrainedError
            Before `fit`.
        """
        return learned(self._posterior, self)

    @property
    def hyperparameters_(self) -> dict[str, float]:
        """Hyperparameters that were chosen, by name; see the class.

        Besides those: `pseudocount`, of the scale on which effects add; `noise`, the factor of the
        known sampling variance; `ratio`, noise by signal variance over all outputs; `calibration`,
        squared errors of what was left out by the variances stated for them, with which stated
        variances are multiplied.
        """
        return self.posterior.hyperparameters

    def refit(self, profiles: TrainingProfiles, like: ConditionGP) -> Self:
        """Learn from nearly the profiles that another learned from, starting from its choices.

        Hyperparameters are searched for next to those of `like` alone, and its scale is kept.
        """
        self._profiles = profiles
        self._learn(like.hyperparameters_)
        return self

    def _learn(self, like: Mapping[str, float] | None = None) -> None:
        """Learn changes and their noise, and tune; `like` as for `Posterior.learn`."""
        super()._learn()
        requests = [RequestRow(what, own) for what, seen in self.deltas.items() for own in seen]
        if not requests:
            msg = "ConditionGP found no training condition that has a control to change from."
            raise SchemaError(msg)
        covered = self.features is not None and any(
            name in self.features for request in requests for name in request.condition.names
        )
        self.leave_out_ = (
            default_leave_out(requests, has_features=covered)
            if self.leave_out == "auto"
            else self.leave_out
        )
        self._seen = {(part.name, part.kind) for r in requests for part in r.condition.components}
        self._kinds = {kind for _, kind in self._seen}
        self._posterior = Posterior.learn(
            self._rows(requests),
            features=self.features if covered else None,
            tune=self.tune,
            n_components=self.n_components,
            n_tuning=self.n_tuning,
            pseudocounts=self._pseudocounts() if like is None else (like["pseudocount"],),
            like=like,
        )

    def _pseudocounts(self) -> tuple[float, ...]:
        """Return those to choose from; other profiles than of summed counts are what they are."""
        if self.profile != "pseudobulk":
            return (1.0,)
        if self.pseudocount is not None:
            return (self.pseudocount,)
        return PSEUDOCOUNTS if self.profiles.variances is not None else (1.0,)

    def _rows(self, requests: list[RequestRow]) -> Rows:
        """Gather what is learned from."""
        profiles = self.profiles
        pairs = zip(profiles.conditions, profiles.contexts, strict=True)
        group = {pair: i for i, pair in enumerate(pairs)}
        rows = [group[request.condition, request.context] for request in requests]
        noise = None
        if profiles.variances is not None:
            start = {own: profiles.controls(own)[0] for own in {r.context for r in requests}}
            controls = [start[request.context] for request in requests]
            noise = profiles.variances[rows], profiles.variances[controls]
        labels = tuple(
            dict.fromkeys(
                own
                for what, own in zip(profiles.conditions, profiles.contexts, strict=True)
                if what.is_control or self.profile == "effects"
            )
        )
        known = None
        if self.profile != "effects":
            known = np.stack([profiles.control_profile(label) for label in labels])
        return Rows(
            requests,
            np.stack([self.deltas[r.condition][r.context] for r in requests]),
            None if known is None else self.controls(requests),
            noise,
            profiles.n_cells[rows].astype(np.float64),
            Contexts(labels, known),
            groups_of(requests, self.leave_out_),
            profiles.are_shares,
        )

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the mean of each condition, its error, and how new it is.

        As `MeanPredictor.predict`. A context of which no perturbed cell was seen is compared with
        those of training by its control cells: the visible ones of the screen, or `reference`.

        Returns
        -------
        AnnData as of `MeanPredictor.predict`, and besides `layers["std"]`, the posterior standard
        deviation of the change of each gene, float32, in the units of the change, of the posterior
        before profiles are scaled; and
        `obs["novelty"]`, posterior by prior variance, 0 (measured without error) to 1 (nothing is
        known but what was believed before), and `obs["support"]`, 1 less novelty.

        Raises
        ------
        UnknownPerturbationError
            If a component was not seen in training and has no features.
        SchemaError
            If the request or the reference does not fit what was learned.
        """
        requests, given = read_request(conditions, reference, self.profiles)
        answer = self.predict_changes(requests, given)
        made = self._to_anndata(requests, given, self._renormalized(answer.mean, requests, given))
        made.layers["std"] = answer.std.astype(np.float32)
        made.obs["novelty"] = answer.novelty
        made.obs["support"] = 1 - answer.novelty
        return made

    def predict_changes(
        self, requests: Sequence[RequestRow], given: ControlCells | None = None
    ) -> GPPrediction:
        """Return changes of the posterior, their errors and novelty; a control does not change."""
        treated = np.array([not request.condition.is_control for request in requests])
        mean, std = np.zeros((2, len(requests), len(self.profiles.var_names)))
        novelty = np.zeros(len(requests))
        if treated.any():
            found = self.posterior.at(*self._asked(requests, given))
            mean[treated], std[treated], novelty[treated] = found.mean, found.std, found.novelty
        return GPPrediction(mean, std, novelty)

    def _changes(
        self, requests: Sequence[RequestRow], given: ControlCells | None
    ) -> NDArray[np.float64]:
        made = self.posterior.mean(*self._asked(requests, given))
        return self._renormalized(made, requests, given)

    def _renormalized(
        self,
        changes: NDArray[np.float64],
        requests: Sequence[RequestRow],
        given: ControlCells | None,
    ) -> NDArray[np.float64]:
        """Scale what changes lead to, where the profiles learned from are shares."""
        if not self.profiles.are_shares:
            return changes
        return renormalized(changes, self.controls(requests, given))

    def covariance(
        self, conditions: Conditions, *, reference: AnnData | None = None
    ) -> ConditionCovariance:
        """Return how errors of the changes of conditions go together.

        From it the next experiments can be chosen: a condition whose measurement tells most about
        the others. It takes one ratio of noise to signal for all outputs; `predict` takes that of
        each.

        Parameters
        ----------
        conditions, reference
            As in `predict`; none of them is of control.

        Raises
        ------
        SchemaError
            If a control is asked for, and as `predict`.
        UnknownPerturbationError
            As `predict`.
        """
        requests, given = read_request(conditions, reference, self.profiles)
        if any(request.condition.is_control for request in requests):
            msg = "A control does not change and has no covariance; leave it out of the request."
            raise SchemaError(msg)
        return ConditionCovariance(*self.posterior.covariance(self._points(requests, given)))

    def _asked(
        self, requests: Sequence[RequestRow], given: ControlCells | None
    ) -> tuple[Points, NDArray[np.float64]]:
        """Return the points of the treated among requests, and the controls they start from."""
        treated = [request for request in requests if not request.condition.is_control]
        return self._points(requests, given), self.controls(treated, given)

    def _points(self, requests: Sequence[RequestRow], given: ControlCells | None) -> Points:
        """Return the points of the treated among requests, of which there is one at least."""
        contexts = None
        if given is not None:
            labels = tuple(dict.fromkeys(request.context for request in requests))
            contexts = Contexts(labels, np.stack([self._control(one, given) for one in labels]))
        treated = [request for request in requests if not request.condition.is_control]
        for request in treated:
            self._refuse_unknown(request)
        return self.posterior.points_of(treated, contexts)

    def knows(self, request: RequestRow) -> bool:
        """Whether all components of a request were seen, or have features that training has."""
        return self._unknown(request) is None

    def _refuse_unknown(self, request: RequestRow) -> None:
        name = self._unknown(request)
        if name is not None:
            known = {other.name for other in self.posterior.points.parts}
            raise UnknownPerturbationError(name, known)

    def _unknown(self, request: RequestRow) -> str | None:
        """Return the name of a component that nothing is known about."""
        kernel = self.posterior.kernel
        for part in request.condition.components:
            if (part.name, part.kind) not in self._seen and not (
                part.kind in self._kinds and kernel.knows(part.name)
            ):
                return part.name
        return None
