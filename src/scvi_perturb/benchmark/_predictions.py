"""Check predictions and convert them to populations that can be compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb._core import UNS_KEY, LeakError, SchemaError, UnknownPerturbationError
from scvi_perturb.benchmark.task import matrix_of
from scvi_perturb.benchmark.trial import cell_fingerprints
from scvi_perturb.data.condition import row_codes
from scvi_perturb.data.reader import check_raw_counts
from scvi_perturb.metrics import CellPopulation, chosen_genes, log_normalize, pseudobulk
from scvi_perturb.predictors.request import CellPredictor, parse_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark._held_out import HeldOutCondition
    from scvi_perturb.benchmark.task import Task
    from scvi_perturb.benchmark.trial import Trial
    from scvi_perturb.metrics import Matrix
    from scvi_perturb.predictors.request import Predictor

#: A mean this near to the measured one, as a share of the change, is the measured one.
_EQUAL: Final = 1e-5


@dataclass(frozen=True)
class Prediction:
    """The prediction of a method for a trial or one of its conditions; empty if it refused."""

    trial: Trial
    cells: AnnData | None = None
    means: AnnData | None = None

    @property
    def refused(self) -> bool:
        """Whether there is no prediction."""
        return self.cells is None and self.means is None

    def read(self) -> list[CellPopulation | None]:
        """Return one population a condition; None where the method refused.

        The mean of a method that has both is what it predicts, not that of the cells it draws,
        which has their sampling noise besides; unless what it predicts is no pseudobulk.

        Raises `SchemaError`: If it is not of what was asked, or not in the units it says. Raises
        `LeakError`: If held-out cells or profiles are in it.
        """
        if self.refused:
            return [None] * len(self.trial.conditions)
        found = [] if self.cells is None else read_cells(self.cells, self.trial)
        means = [] if self.means is None else read_means(self.means, self.trial)
        if found and means and _is_pseudobulk(self.means):
            found = [
                replace(cells, mean=mean.mean, mean_variance=0.0, effect_std=mean.effect_std)
                for cells, mean in zip(found, means, strict=True)
            ]
        populations = found or means
        refuse_copied_profiles(populations, self.trial)
        return [*populations]


def predict_trial(predictor: Predictor, trial: Trial) -> list[Prediction]:
    """Return what a fitted method predicts.

    Methods with `sample` are judged by cells, and all by the means that they predict. A method
    that refuses the whole request is asked for one condition at a time. All are asked for the same
    number of cells, so that it tells nothing of what was measured.

    Raises `UnknownPerturbationError, SchemaError`: If it refuses every condition.
    """
    try:
        return [_predict(predictor, trial)]
    except (UnknownPerturbationError, SchemaError) as refusal:
        found = [
            _predict_or_none(predictor, _single(trial, i)) for i in range(len(trial.conditions))
        ]
        if all(one.refused for one in found):
            raise refusal from None
        return found


def _predict(predictor: Predictor, trial: Trial) -> Prediction:
    means = predictor.predict(trial.requests)
    if trial.task.values == "effects" or not isinstance(predictor, CellPredictor):
        return Prediction(trial, None, means)
    n_samples = trial.task.max_cells
    cells = predictor.sample(trial.requests, n_samples=n_samples, seed=trial.seed)
    return Prediction(trial, cells, means)


def _predict_or_none(predictor: Predictor, trial: Trial) -> Prediction:
    try:
        return _predict(predictor, trial)
    except (UnknownPerturbationError, SchemaError):
        return Prediction(trial)


def _single(trial: Trial, i: int) -> Trial:
    """Return the trial with one of its conditions alone."""
    requests = trial.requests.iloc[[i]].reset_index(drop=True)
    return replace(trial, requests=requests, conditions=(trial.conditions[i],))


def _is_pseudobulk(means: AnnData | None) -> bool:
    made = {} if means is None else means.uns.get(UNS_KEY, {})
    return made.get("profile", "pseudobulk") == "pseudobulk"


def read_cells(predicted: AnnData, trial: Trial) -> list[CellPopulation]:
    """Return predicted cells as one population a condition.

    `predicted`: Predicted cells. `X`: raw counts, or log-normalised cells if
    `uns["scvi_perturb"]["units"]` says "log1p(counts per 10,000)"; `obs`: the columns of the
    condition and the context, as in `trial.requests`. `trial`: What was asked. Returns as many
    predicted cells of each condition as were measured, a random choice of them. Raises
    `SchemaError`: If conditions are missing or were not asked for, there are fewer cells than were
    measured, genes differ, or values are neither. Raises `LeakError`: If held-out cells are among
    them.
    """
    predicted = _with_genes(predicted, trial)
    logged = str(predicted.uns.get(UNS_KEY, {}).get("units", "counts")).startswith("log1p")
    values = predicted.X
    if logged:
        _check_logged(values)
    else:
        check_raw_counts(values, where="the prediction's X")
    found = []
    for condition, rows in zip(
        trial.conditions, _rows_of_conditions(predicted.obs, trial), strict=True
    ):
        wanted = max(condition.n_cells, 2)
        if len(rows) < wanted:
            msg = (
                f"The prediction has {len(rows)} cells of {condition.name!r}, of which {wanted} "
                f"were measured. Predict at least as many; {trial.task.max_cells} always suffice."
            )
            raise SchemaError(msg)
        _refuse_copied_cells(
            values[rows] if logged else log_normalize(values[rows]), condition, trial
        )
        chosen = np.random.default_rng(trial.seed).choice(rows, wanted, replace=False)
        taken = values[np.sort(chosen)]
        found.append(
            CellPopulation.from_cells(taken, profile="pseudobulk")
            if logged
            else CellPopulation.from_counts(taken)
        )
    return found


def _check_logged(values: Any) -> None:  # noqa: ANN401
    stored = values.data if sparse.issparse(values) else np.asarray(values)
    if not np.isfinite(stored).all() or stored.min(initial=0.0) < 0:
        msg = (
            "Predicted cells have values that are negative or not finite; expected log1p of counts "
            "per 10,000, which are 0 or more. Clip them, or predict counts."
        )
        raise SchemaError(msg)


def read_means(predicted: AnnData, trial: Trial) -> list[CellPopulation]:
    """Return predicted means, one row a condition, as one population each.

    Raises `SchemaError`: If conditions are missing, come twice or were not asked for, genes differ,
    a value is not finite, or a standard error is not finite or negative.
    """
    predicted = _with_genes(predicted, trial)
    values = np.asarray(_dense(predicted.X), np.float64)
    if not np.isfinite(values).all():
        msg = "Predicted means have values that are not finite; expected a number for every gene."
        raise SchemaError(msg)
    stated = predicted.layers.get("std")
    if stated is not None:
        _check_std(stated)
    found = []
    for condition, rows in zip(
        trial.conditions, _rows_of_conditions(predicted.obs, trial), strict=True
    ):
        if len(rows) > 1:
            msg = (
                f"{condition.name!r} was predicted {len(rows)} times; expected one row a condition."
            )
            raise SchemaError(msg)
        std = None if stated is None else np.asarray(_dense(stated[rows[0]]), np.float64).ravel()
        found.append(CellPopulation(values[rows[0]], effect_std=std))
    return found


def _check_std(std: Any) -> None:  # noqa: ANN401
    stated = np.asarray(_dense(std))
    if not np.isfinite(stated).all() or stated.min(initial=0.0) < 0:
        msg = (
            "Stated standard errors (layer 'std') are negative or not finite; expected a number of "
            "0 or more for every gene. State none rather than some."
        )
        raise SchemaError(msg)


def _rows_of_conditions(obs: pd.DataFrame, trial: Trial) -> list[NDArray[np.intp]]:
    """Return the rows of a prediction that belong to each condition."""
    asked = _identities(trial.requests, trial.task, what="The request")[0]
    given, code = _identities(obs, trial.task, what="The prediction")
    place = {identity: i for i, identity in enumerate(given)}
    missing = [
        condition.name
        for condition, one in zip(trial.conditions, asked, strict=True)
        if one not in place
    ]
    if missing:
        msg = (
            f"The prediction lacks {len(missing)} of {len(asked)} conditions: {missing[:3]}. "
            "Predict all that were asked for."
        )
        raise SchemaError(msg)
    extra = [str(one) for one in given if one not in set(asked)]
    if extra:
        msg = (
            f"The prediction has {len(extra)} conditions that were not asked for: {extra[:3]}. "
            "Predict exactly the rows of the request."
        )
        raise SchemaError(msg)
    return [np.flatnonzero(code == place[one]) for one in asked]


def _identities(
    table: pd.DataFrame, task: Task, *, what: str
) -> tuple[list[Any], NDArray[np.int64]]:
    """Return the distinct conditions of a table, and which of them each row is."""
    columns = task.keys.obs_columns
    absent = [column for column in columns if column not in table]
    if absent:
        msg = f"{what} has no column {absent[0]!r} in obs; it has {sorted(map(str, table))}."
        raise SchemaError(msg)
    first, code = row_codes(table, columns)
    distinct = pd.DataFrame({column: table[column].iloc[first].tolist() for column in columns})
    parsed = parse_requests(distinct, keys=task.keys)
    names: dict[Any, int] = {}
    merged = np.array([names.setdefault(request, len(names)) for request in parsed])
    return list(names), merged[code]


def _with_genes(predicted: AnnData, trial: Trial) -> AnnData:
    """Return the prediction with the genes of the screen, in their order."""
    genes = trial.visible.var_names.astype(str)
    names = predicted.var_names.astype(str)
    if names.equals(genes):
        return predicted
    missing, extra = genes.difference(names), names.difference(genes)
    if len(missing) or len(extra) or not names.is_unique:
        some = [*missing[:2], *extra[:2]]
        msg = (
            f"The prediction has {len(names)} genes, {len(missing)} of the screen's are missing "
            f"and {len(extra)} are not the screen's ({some}). Predict the genes of the screen."
        )
        raise SchemaError(msg)
    return predicted[:, genes].copy()


def _dense(values: Any) -> NDArray[np.floating]:  # noqa: ANN401
    return values.toarray() if sparse.issparse(values) else np.asarray(values)


def _refuse_copied_cells(cells: Matrix, condition: HeldOutCondition, trial: Trial) -> None:
    """Raise if held-out cells are among log-normalised predicted ones `(n_cells, n_genes)`.

    Methods are given the visible cells alone. One that reaches the others in another way, through
    a file or through what it was made with, is found here: its run fails, whatever its score.

    Raises `LeakError`: Naming the condition.
    """
    real = None if condition.truth is None else condition.truth.observed.cells
    if real is None:
        return
    held = log_normalize(matrix_of(trial.held_out_cells, trial.task.keys.layer)[condition.rows])
    copied = cell_fingerprints(held) & cell_fingerprints(cells)
    copied -= trial.visible_fingerprints if copied else set()
    if copied:
        _refuse(f"{len(copied)} held-out cells", condition.name)


def refuse_copied_profiles(found: Sequence[CellPopulation], trial: Trial) -> None:
    """Raise if the measured profile of a held-out condition is what was predicted.

    Raises `LeakError`: Naming the condition.
    """
    counts = trial.task.values == "counts"
    for population, condition in zip(found, trial.conditions, strict=True):
        if condition.truth is None:
            continue
        real = _whole_profile(trial, condition) if counts else condition.truth.observed.mean
        nearest = np.linalg.norm(population.mean - real)
        if nearest > _EQUAL * np.linalg.norm(real - condition.truth.control.mean):
            continue
        # Effects are single rows, and two conditions may have equal ones.
        if counts or not _is_visible(real, trial):
            _refuse("the profile of the held-out cells", condition.name)


def _refuse(what: str, name: str) -> None:
    msg = (
        f"The prediction of {name!r} contains {what}: the method has seen what it was asked to "
        "predict. Fit it on the visible cells alone."
    )
    raise LeakError(msg)


def _is_visible(effect: NDArray[np.floating], trial: Trial) -> bool:
    rows = chosen_genes(matrix_of(trial.visible, trial.task.keys.layer))
    away = np.linalg.norm(rows - effect, axis=1)
    return bool(away.min() <= _EQUAL * np.linalg.norm(effect))


def _whole_profile(trial: Trial, condition: HeldOutCondition) -> NDArray[np.floating]:
    """Return the profile of all held-out cells of a condition, those left out of the score too."""
    return pseudobulk(matrix_of(trial.held_out_cells, trial.task.keys.layer)[condition.rows])
