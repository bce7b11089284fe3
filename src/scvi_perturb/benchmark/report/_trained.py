"""A trained model on its screen: what it predicts, and how that compares with the measurement."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import numpy as np

from scvi_perturb._core import TARGET_SUM, SchemaError, UnknownPerturbationError
from scvi_perturb.benchmark._evaluation import score_method, score_replicate
from scvi_perturb.benchmark.methods import TRIVIAL, Method, ModelPredictor, Setting
from scvi_perturb.benchmark.results import Results
from scvi_perturb.benchmark.study import Study
from scvi_perturb.benchmark.task import Task, matrix_of
from scvi_perturb.benchmark.trial import Trial
from scvi_perturb.data.screen import Screen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark._held_out import HeldOutCondition
    from scvi_perturb.benchmark.results import Record
    from scvi_perturb.data.condition import ScreenKeys
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.model.base.model import PerturbationModel
    from scvi_perturb.predictors.request import Conditions

#: Name of the task and of the model in the results.
TASK: Final = "study"
MODEL: Final = "model"


class TrainedPredictor(ModelPredictor):
    """A trained model with the interface of a predictor: `fit` changes nothing.

    Where the screen holds some of the genes and registers library sizes, `predict` converts to the
    units of the metrics: counts per ten thousand counts of the genes that are there.
    """

    def __init__(self, model: PerturbationModel, seed: int, interval: float = 0.9) -> None:
        super().__init__(type(model), seed=seed)
        self._model, self.seed, self.interval = model, seed, interval

    @property
    def keys(self) -> ScreenKeys:
        """Where the screen of the model holds conditions and contexts."""
        return Screen.from_registry(self.model.registry).keys

    def fit(
        self, adata: AnnData, split: Split | None = None, *, keys: ScreenKeys | None = None
    ) -> Self:
        """Return the model as it is."""
        del adata, split, keys
        return self

    def answer(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return mean profiles and effects with intervals; as the model's `predict`."""
        return self.model.predict(
            conditions, reference=reference, interval=self.interval, seed=self.seed
        )

    def predict(self, conditions: Conditions, *, reference: AnnData | None = None) -> AnnData:
        """Return mean profiles and effects with intervals, in the units of the metrics."""
        made = self.answer(conditions, reference=reference)
        return made if self.keys.library is None else _of_measured_genes(made)

    def nll(self, cells: AnnData) -> NDArray[np.float64]:
        """Return NaN: a trial does not hold the batches and library sizes of cells."""
        return np.full(cells.n_obs, np.nan)


def _of_measured_genes(predicted: AnnData) -> AnnData:
    """Return profiles and effects per ten thousand counts of the genes in the file."""
    made = predicted.copy()
    mean, lfc = (np.asarray(x, np.float64) for x in (made.X, made.layers["lfc"]))
    control = mean - lfc
    totals = [np.expm1(x).sum(axis=1, keepdims=True) for x in (mean, control)]

    def scaled(values: NDArray[np.float64], total: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.log1p(TARGET_SUM * np.maximum(np.expm1(values), 0.0) / total)

    made.X, own = scaled(mean, totals[0]), scaled(control, totals[1])
    for name in ("lower", "upper"):
        made.layers[name] = scaled(control + made.layers[name], totals[0]) - own
    made.layers["lfc"] = made.X - own
    # A standard error is scaled as a small change is.
    share = np.expm1(mean)
    factor = TARGET_SUM / totals[0]
    made.layers["std"] = made.layers["std"] * factor * (1 + share) / (1 + factor * share)
    return made


@dataclass(frozen=True)
class Comparisons:
    """What was held out: how the model, trivial predictions and a replicate predict it.

    `trial`: The held-out conditions as measured. `results`: Scores of each method. `trivial`: The
    change that each trivial prediction of means states, by its name, `(n_conditions, n_genes)`, in
    the units of the metrics. `shares`: Of each condition and of its controls, the share of the
    library size that the genes of the file hold, `(n_conditions, 2)`; 1 without library sizes.
    """

    trial: Trial
    results: Results
    trivial: Mapping[str, NDArray[np.float64]]
    shares: NDArray[np.float64]

    def change(
        self, place: int, control: NDArray[np.floating], change: NDArray[np.floating], *, real: bool
    ) -> NDArray[np.float64]:
        """Return a change from control in the units of the model's `predict`.

        `place`: Of the condition. `control`, `change`: `(n_genes,)`, in the units of the metrics.
        `real`: Whether it was measured; what a trivial predictor says has the share of controls.
        """
        own, of_control = self.shares[place]
        after = np.expm1(control + change) * (own if real else of_control)
        made: NDArray[np.float64] = np.log1p(after) - np.log1p(np.expm1(control) * of_control)
        return made


@dataclass(frozen=True)
class Answer:
    """What a model says of one condition, and what was measured of it.

    `name`: The condition and its context. `predicted`: One row of `predict`; None if the model
    refused, and `message` says why. `held_out`: The condition as measured, and its row among those
    of the trial; None if it was not held out.
    """

    name: str
    predicted: AnnData | None
    message: str = ""
    held_out: HeldOutCondition | None = None
    place: int = -1


def compare(predictor: TrainedPredictor, adata: AnnData, split: Split) -> Comparisons:
    """Score a trained model on what its split held out, beside trivial predictions.

    Raises `LeakError`: If a held-out condition is among the training cells. Raises `SchemaError`:
    If the split is of other data.
    """
    model, seed = predictor.model, predictor.seed
    features = model._vocabulary.features
    task = Task(
        name=TASK,
        title="held-out conditions",
        load=lambda: adata,
        kind=split.kind,  # type: ignore[arg-type]
        keys=split.keys,
        features=None if features is None else lambda _: features,
        max_cells=500,
    )
    own = Method(name=MODEL, title=type(model).__name__, make=lambda _: predictor)
    study = Study(tasks=(task,), methods=(own, *TRIVIAL), seeds=(seed,), max_folds=1)
    job = next(study.jobs())
    trial = Trial.make(task, seed=seed, fold=0, split=split)
    records = [score_replicate(trial), *(score_method(trial, method) for method in job.methods)]
    return Comparisons(
        trial,
        Results(Path(), study, made=tuple(records)),
        _trivial_changes(trial, job.methods, records),
        _shares(adata, trial, predictor.keys),
    )


def _trivial_changes(
    trial: Trial, methods: Sequence[Method], records: Sequence[Record]
) -> dict[str, NDArray[np.float64]]:
    """Return the changes that trivial predictions of means state for every condition."""
    answered = {record.method for record in records if record.status == "ok"}
    found = {}
    setting = Setting(trial.task.kind, "counts", trial.features, trial.seed)
    for method in methods:
        if method.role == "mean" and method.name in answered:
            fitted = method.make(setting).fit(
                trial.visible, trial.visible_split, keys=trial.task.keys
            )
            found[method.name] = np.asarray(fitted.predict(trial.requests).layers["lfc"])
    return found


def _shares(adata: AnnData, trial: Trial, keys: ScreenKeys) -> NDArray[np.float64]:
    """Return the shares of library sizes that the genes of the file hold, see `Comparisons`."""
    made = np.ones((len(trial.conditions), 2))
    if keys.library is None:
        return made
    library = adata.obs[keys.library].to_numpy(np.float64)
    counts = matrix_of(adata, keys.layer)
    seen = np.setdiff1d(np.arange(adata.n_obs), trial.split.test)
    seen = seen[(adata.obs[keys.perturbation].astype(str) == keys.control).to_numpy()[seen]]
    for i, condition in enumerate(trial.conditions):
        near = np.ones(len(seen), bool)
        for column in trial.split.keys.context:
            near &= (adata.obs[column].iloc[seen] == trial.requests[column].iloc[i]).to_numpy()
        for j, rows in enumerate((trial.split.test[condition.rows], seen[near])):
            made[i, j] = counts[rows].sum() / library[rows].sum()
    return made


def answers(
    predictor: TrainedPredictor, conditions: Sequence[str] | None, found: Comparisons | None
) -> list[Answer]:
    """Return what a model says of conditions; of those that were held out, in each context.

    `conditions`: Names; None is all that was held out. Raises `UnknownPerturbationError,
    SchemaError`: If a condition was not held out and the model does not know it.
    """
    keys = predictor.keys
    wanted = None
    if conditions is not None:
        parsed = [keys.parse(perturbation=name) for name in conditions]
        wanted = dict.fromkeys(one.format(keys.control, keys.separator) for one in parsed)
    made = []
    for place, condition in enumerate(() if found is None else found.trial.conditions):
        label = condition.about["perturbation"]
        if wanted is None or label in wanted:
            row = found.trial.requests.iloc[[place]].reset_index(drop=True)  # type: ignore[union-attr]
            made.append(_answer(predictor, condition, row, place))
    known = {one.held_out.about["perturbation"] for one in made if one.held_out is not None}
    others = [label for label in wanted or () if label not in known]
    if others:
        predicted = predictor.answer(others)
        made += [Answer(name, predicted[[i]].copy()) for i, name in enumerate(others)]
    return made


def _answer(
    predictor: TrainedPredictor, condition: HeldOutCondition, row: pd.DataFrame, place: int
) -> Answer:
    try:
        predicted = predictor.answer(row)
    except (UnknownPerturbationError, SchemaError) as error:
        return Answer(condition.name, None, str(error), condition, place)
    return Answer(condition.name, predicted, "", condition, place)
