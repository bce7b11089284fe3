"""Trivial predictors of cells: shifted controls, nearest condition, negative binomial."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from scvi_perturb._checks import check_choice, checked
from scvi_perturb._core import TARGET_SUM, UNS_KEY, UnknownPerturbationError, log_normalize_cells
from scvi_perturb.data.condition import default_keys
from scvi_perturb.data.condition_table import encode_obs
from scvi_perturb.data.request import agrees
from scvi_perturb.predictors.base import (
    UNITS,
    CellSource,
    FromControls,
    MeanPredictor,
    SourceCells,
    learned,
)
from scvi_perturb.predictors.baselines import ContextMean
from scvi_perturb.predictors.profiles import TrainingProfiles, proportions
from scvi_perturb.predictors.request import (
    ControlCells,
    context_labels,
    read_counts,
    read_request,
    request_frame,
    seen_cells,
)
from scvi_perturb.similarity.kernels import Similarity, covered, names_in

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from scvi_perturb.data.condition import Component, Condition, ScreenKeys
    from scvi_perturb.data.request import Context, RequestRow
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.features.store import PerturbationFeatures
    from scvi_perturb.predictors.profiles import Profile
    from scvi_perturb.predictors.request import Conditions


#: Values that are held densely at a time.
_BLOCK = 4_000_000


def moment_dispersion(counts: Any, group: NDArray[np.int64]) -> NDArray[np.float64]:  # noqa: ANN401
    """Return `a` in `variance = m + a m**2`, for each gene, `(n_genes,)`; 0 is Poisson.

    The mean `m` of a cell is its total times the proportions of its group. Over all cells,
    `a = sum((x - m)**2 * n / (n - 1) - m) / sum(m**2)`, with `n` the size of the group; what is
    below 0 is set to 0. Groups of one cell say nothing. A gene with no counts gets the ratio of the
    sums over all genes.

    `counts`: Raw counts, `(n_cells, n_genes)`, an array or CSR. `group`: Number of the group of
    each cell, `(n_cells,)`.
    """
    excess, squares = np.zeros(counts.shape[1]), np.zeros(counts.shape[1])
    step = max(1, _BLOCK // max(counts.shape[1], 1))
    for rows in (np.flatnonzero(group == i) for i in np.unique(group)):
        if len(rows) < 2:
            continue
        sizes = np.asarray(counts[rows].sum(axis=1), np.float64).ravel()
        totals = np.asarray(counts[rows].sum(axis=0), np.float64).ravel()
        share = totals / max(totals.sum(), 1.0)
        for start in range(0, len(rows), step):
            part = counts[rows[start : start + step]]
            dense = np.asarray(part.toarray() if sparse.issparse(part) else part, np.float64)
            mean = sizes[start : start + step, None] * share
            unbiased = len(rows) / (len(rows) - 1)
            excess += ((dense - mean) ** 2 * unbiased - mean).sum(axis=0)
            squares += (mean**2).sum(axis=0)
    common = max(excess.sum() / squares.sum(), 0.0) if squares.sum() > 0 else 0.0
    own = np.divide(excess, squares, out=np.full(len(excess), common), where=squares > 0)
    return np.maximum(own, 0.0)


@checked
class ShiftedControl(FromControls):
    """Predict cells: control cells in log space, plus the predicted mean change, clipped at 0.

    All cells move alike, so spread and zeros are those of control cells (or of the clipping). A
    claim about predicted *cells* counts where it beats this with the same mean. Cells are
    log-normalised, dense float32, and not counts.

    Parameters
    ----------
    mean
        Predictor of the change; `ContextMean(profile="cell_mean")` if None. Its `profile` should
        be "cell_mean": the change is added to the log of single cells. With `NoChange` the
        control cells come back as they are.
    """

    name: ClassVar[str] = "shifted_control"

    def __init__(self, mean: MeanPredictor | None = None) -> None:
        super().__init__(ContextMean(profile="cell_mean") if mean is None else mean)

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the mean of the shifted cells of each condition.

        Clipping moves it away from the control's mean plus the change. Parameters, result and
        errors are those of `MeanPredictor.predict`.
        """
        answer, populations = self._sources(conditions, reference)
        for i, population in enumerate(populations):
            control = log_normalize_cells(population.counts)
            base = np.asarray(control.mean(axis=0)).ravel()
            answer.X[i] = _shift(control, population.change).mean(axis=0)
            answer.layers["lfc"][i] = answer.X[i] - base
        answer.uns[UNS_KEY] = self._provenance()
        return answer

    @property
    def _about(self) -> tuple[str, str, Profile]:
        return f"{self.name}({self.mean.name})", UNITS, self.mean.profile

    def _cells(
        self, population: SourceCells, drawn: NDArray[np.intp], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        return _shift(log_normalize_cells(population.counts[drawn]), population.change)


def _shift(control: Any, change: NDArray[np.float32]) -> NDArray[np.float32]:  # noqa: ANN401
    dense = control.toarray() if sparse.issparse(control) else np.asarray(control)
    return np.maximum(dense + change, 0.0).astype(np.float32)


class NearestCondition:
    """Finds the training condition nearest to any other.

    `conditions`: Treated conditions of training. `features`: What is known about perturbations, or
    None.
    """

    def __init__(
        self, conditions: Sequence[Condition], features: PerturbationFeatures | None
    ) -> None:
        self.conditions = sorted(set(conditions), key=_order)
        self._described = [c for c in self.conditions if features and covered(c, features)]
        self._similarity = Similarity(features, names_in(self._described)) if features else None

    def of(self, asked: Condition) -> Condition:
        """Return the nearest condition; see `NearestCells` for what is near.

        Raises `UnknownPerturbationError`: If no component is shared with training and features do
        not help.
        """
        sharing = [c for c in self.conditions if _identities(c) & _identities(asked)]
        if sharing:
            return min(sharing, key=lambda c: (*_not_shared(asked, c), *_farther(asked, c)))
        similar = self._similar(asked)
        return min(similar, key=lambda c: (len(c.components), *_farther(asked, c)))

    def _similar(self, asked: Condition) -> list[Condition]:
        """Return the conditions whose features are most similar."""
        if self._similarity is None or not self._described:
            raise UnknownPerturbationError(str(asked), map(str, self.conditions))
        for part in asked.components:
            if part.name not in self._similarity.features:
                raise UnknownPerturbationError(part.name, self._similarity.features.names)
        _, shared = self._similarity.between(names_in([asked]))
        if not shared.any():
            raise UnknownPerturbationError(str(asked), map(str, self._described))
        shares = self._similarity.shares(self._described)
        similarity = (self._similarity.of([asked]) @ shares.T)[0]
        best = np.flatnonzero(similarity >= similarity.max() - 1e-9)
        return [self._described[i] for i in best]


def nearest_contexts(
    profiles: TrainingProfiles,
    contexts: Sequence[Context],
    asked: Context,
    control: NDArray[np.float64],
) -> list[Context]:
    """Return the contexts to take cells from, among those where a condition was measured.

    Those that agree with what was asked; if none does, the one whose training control profile has
    the least Euclidean distance to `control`, the first by name of those at the same distance.

    `profiles`: What was learned. `contexts`: Where the condition was measured. `asked`: The context
    asked for. `control`: Control profile of the context asked for, `(n_genes,)`.
    """
    here = [own for own in contexts if agrees(asked, own)]
    if here:
        return here

    def distance(own: Context) -> float:
        known = bool(profiles.controls(own))
        return float(np.linalg.norm(profiles.control_profile(own) - control)) if known else np.inf

    return [min(sorted(contexts, key=str), key=distance)]


def _identities(condition: Condition) -> set[tuple[str, str]]:
    return {(part.name, part.kind) for part in condition.components}


def _not_shared(asked: Condition, other: Condition) -> tuple[int, int]:
    """Return how many components are missing, and how many are too many."""
    own, there = _identities(asked), _identities(other)
    return len(own - there), len(there - own)


def _farther(asked: Condition, other: Condition) -> tuple[float, float, tuple[object, ...]]:
    """Return distances in dose and time, and what puts ties in order."""
    doses = {(part.name, part.kind): part.dose for part in other.components}
    common = [part for part in asked.components if (part.name, part.kind) in doses]
    if common:
        gaps = [_gap(part.dose, doses[part.name, part.kind]) for part in common]
    else:
        gaps = [_gap(_mean_dose(asked.components), _mean_dose(other.components))]
    # Times may not be recorded on one side: that is no distance.
    apart = 0.0
    if asked.time is not None and other.time is not None:
        apart = abs(asked.time - other.time)
    return round(sum(gaps), 9), apart, _order(other)


def _gap(dose: float, other: float) -> float:
    return float(abs(np.log(dose / other)))


def _mean_dose(parts: Sequence[Component]) -> float:
    """Return the geometric mean of doses."""
    return float(np.exp(np.mean([np.log(part.dose) for part in parts])))


def _order(condition: Condition) -> tuple[object, ...]:
    """Return a key that sorts by names, kinds, doses and time."""
    parts = tuple((part.name, part.kind, part.dose) for part in condition.components)
    return parts, -1.0 if condition.time is None else condition.time


COUNT_UNITS: Final = "counts"
#: Values that are drawn at a time.


@checked
class NegativeBinomialMean(FromControls):
    """Predict cells: negative binomial counts around a predicted mean, genes independent.

    A cell has the library size of a control cell (its counts summed over the genes), resampled as
    `sample` says, and for each gene a count of mean library size times the gene's proportion in
    the predicted profile. The variance is `m + a m**2`, with `a` for each gene by moments from
    training cells around the mean of their group. It says what spread counting and
    overdispersion alone give: a claim about the *structure* of predicted cells counts where it
    beats this with the same mean. Cells are integer counts, CSR float32.

    Parameters
    ----------
    mean
        Predictor of the change, with `profile="pseudobulk"`; `ContextMean()` if None. Its profile
        is turned back from `log1p` to proportions; what would be negative is 0.
    dispersion_from
        "controls": training control cells, around the mean of their context. "all": all training
        cells, around the mean of their condition in their context; their counts are read into
        memory for it.

    Raises
    ------
    ValueError
        If the mean's profile is not "pseudobulk".
    """

    name: ClassVar[str] = "negative_binomial_mean"

    def __init__(
        self,
        mean: MeanPredictor | None = None,
        *,
        dispersion_from: Literal["controls", "all"] = "controls",
    ) -> None:
        super().__init__(ContextMean() if mean is None else mean)
        check_choice("mean.profile", self.mean.profile, ("pseudobulk",))
        self.dispersion_from = dispersion_from

    def fit(
        self, adata: AnnData, split: Split | None = None, *, keys: ScreenKeys | None = None
    ) -> Self:
        """Fit the mean, keep the training control cells, estimate the dispersion of each gene.

        Parameters and errors are those of `MeanPredictor.fit`.
        """
        super().fit(adata, split, keys=keys)
        controls = self._held()
        if self.dispersion_from == "controls":
            counts, labels = controls.counts, [(0, own) for own in controls.contexts]
        else:
            profiles, seen = self.mean.profiles, seen_cells(adata, split)
            obs = adata.obs.iloc[seen]
            codes, _ = encode_obs(obs, profiles.keys)
            own_contexts = context_labels(obs, profiles.keys.context)
            counts = read_counts(adata, profiles.keys.layer, seen)
            labels = list(zip(codes.tolist(), own_contexts, strict=True))
        place = {label: i for i, label in enumerate(dict.fromkeys(labels))}
        #: `a` in `m + a m**2`, `(n_genes,)`.
        self.dispersion = moment_dispersion(counts, np.array([place[label] for label in labels]))
        return self

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the mean that cells are drawn around: that of `mean`, scaled to sum to 1e4.

        Parameters, result and errors are those of `MeanPredictor.predict`.
        """
        answer, populations = self._sources(conditions, reference)
        for i, population in enumerate(populations):
            base = population.mean - population.change
            answer.X[i] = np.log1p(TARGET_SUM * proportions(population.mean))
            answer.layers["lfc"][i] = answer.X[i] - base
        answer.uns[UNS_KEY] = self._provenance() | {"units": UNITS}
        return answer

    @property
    def _about(self) -> tuple[str, str, Profile]:
        return f"{self.name}({self.mean.name})", COUNT_UNITS, self.mean.profile

    def _cells(
        self, population: SourceCells, drawn: NDArray[np.intp], rng: np.random.Generator
    ) -> sparse.csr_matrix:
        library = np.asarray(population.counts.sum(axis=1), np.float64).ravel()[drawn]
        share = proportions(population.mean)
        step = max(1, _BLOCK // len(share))
        return sparse.vstack(
            [
                sparse.csr_matrix(self._counts(library[start : start + step], share, rng))
                for start in range(0, len(library), step)
            ],
            "csr",
        )

    def _counts(
        self, library: NDArray[np.float64], share: NDArray[np.float64], rng: np.random.Generator
    ) -> NDArray[np.float32]:
        """Return Poisson draws around Gamma rates, `(n_cells, n_genes)`."""
        rate = library[:, None] * share
        spread = self.dispersion > 1e-8
        scale = self.dispersion[spread]
        rate[:, spread] *= rng.gamma(1 / scale, scale, size=(len(library), len(scale)))
        return rng.poisson(rate).astype(np.float32)


@checked
class NearestCells(CellSource):
    """Predict cells: the real training cells of the nearest condition, resampled as they are.

    What stands in for a condition is found in this order.

    1. Controls are the control cells of the context.
    2. Of the training conditions that share a component (a name with its kind), that which lacks
       the fewest of the components asked for; then with the fewest that were not asked for; then
       of the nearest doses of the shared components (least sum of distances in the logarithm);
       then of the nearest time; then the first by name. So a condition that was trained on is
       itself, an unseen dose is the nearest dose, and an unseen combination is one that shares
       most of it.
    3. If none shares a component, the condition with the most similar features, as `KernelRidge`
       compares them, of the fewest components; then of the nearest mean dose, and so on.

    Its cells are taken in the context asked for; or, if it was not measured there, in that of its
    contexts whose training control profile is nearest, in Euclidean distance, to the control
    profile of the context asked for (the training controls, or `reference`). Cells are integer
    counts, CSR, and nothing is changed about them: effects of another depth or context come along.
    The counts of all training cells are held in memory.

    Parameters
    ----------
    features
        What is known about perturbations; None finds conditions that share a component only.
    """

    name: ClassVar[str] = "nearest_cells"

    def __init__(self, features: PerturbationFeatures | None = None) -> None:
        self.features = features
        self._profiles: TrainingProfiles | None = None

    def fit(
        self, adata: AnnData, split: Split | None = None, *, keys: ScreenKeys | None = None
    ) -> Self:
        """Keep the training cells and the profiles of their groups.

        Parameters and errors are those of `MeanPredictor.fit`.
        """
        self._profiles = TrainingProfiles.from_screen(
            adata, split, keys=keys or default_keys(adata), kind="pseudobulk"
        )
        seen = seen_cells(adata, split)
        obs = adata.obs.iloc[seen]
        codes, table = encode_obs(obs, self._profiles.keys)
        contexts = context_labels(obs, self._profiles.keys.context)
        self._cells_of: dict[Condition, dict[Context, list[int]]] = {}
        for i, (code, own) in enumerate(zip(codes.tolist(), contexts, strict=True)):
            by_context = self._cells_of.setdefault(table.conditions[code], {})
            by_context.setdefault(own, []).append(i)
        self._counts, self._names = read_counts(adata, self._profiles.keys.layer, seen), obs.index
        treated = [condition for condition in self._cells_of if not condition.is_control]
        self._nearest = NearestCondition(treated, self.features)
        return self

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return the profile of the cells that stand in for each condition.

        Parameters, result and errors are those of `MeanPredictor.predict`; `X` is the pseudobulk
        of these cells, and `layers["lfc"]` its difference from the control profile of the context
        asked for.
        """
        answer, populations = self._sources(conditions, reference)
        mean = np.stack([population.mean for population in populations])
        change = np.stack([population.change for population in populations])
        made = AnnData(X=mean, obs=answer.obs, var=answer.var, layers={"lfc": change})
        made.uns[UNS_KEY] = self._provenance() | {"units": UNITS}
        return made

    @property
    def _about(self) -> tuple[str, str, Profile]:
        return self.name, COUNT_UNITS, "pseudobulk"

    def _sources(
        self, conditions: Conditions, reference: AnnData | None
    ) -> tuple[AnnData, list[SourceCells]]:
        profiles = learned(self._profiles, self)
        requests, given = read_request(conditions, reference, profiles)
        frame = request_frame(requests, profiles.keys)
        var = pd.DataFrame(index=profiles.var_names)
        populations = [self._population(request, given, profiles) for request in requests]
        return AnnData(obs=frame, var=var), populations

    def _population(
        self, request: RequestRow, given: ControlCells | None, profiles: TrainingProfiles
    ) -> SourceCells:
        if given is None:
            control = profiles.control_profile(request.context)
            groups = profiles.controls(request.context)
            n_controls = int(profiles.n_cells[groups].sum())
        else:
            own = given.rows(request.context)
            control, n_controls = profiles.profile_of(given.counts[own]), len(own)
        if request.condition.is_control and given is not None:
            counts, names = given.counts[own], given.names[own]
        else:
            rows = self._rows(request, control, profiles)
            counts, names = self._counts[rows], self._names[rows]
        mean = profiles.profile_of(counts)
        return SourceCells(
            counts,
            names,
            n_controls=n_controls,
            mean=mean.astype(np.float32),
            change=(mean - control).astype(np.float32),
        )

    def _rows(
        self, request: RequestRow, control: NDArray[np.float64], profiles: TrainingProfiles
    ) -> NDArray[np.int64]:
        """Return the places of the training cells that stand in, in the order of the file."""
        condition = request.condition
        found = self._cells_of[condition if condition.is_control else self._nearest.of(condition)]
        contexts = nearest_contexts(profiles, list(found), request.context, control)
        return np.sort(np.concatenate([found[own] for own in contexts])).astype(np.int64)

    def _cells(
        self, population: SourceCells, drawn: NDArray[np.intp], rng: np.random.Generator
    ) -> Any:  # noqa: ANN401
        return sparse.csr_matrix(population.counts[drawn], dtype=np.float32)
