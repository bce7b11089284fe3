"""What a method answers, checked, as populations that can be compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._errors import SchemaError, UnknownPerturbationError
from scvi_perturb.benchmark._leaks import refuse_copies
from scvi_perturb.data._counts import check_raw_counts
from scvi_perturb.data._keys import row_codes
from scvi_perturb.metrics import Population
from scvi_perturb.predictors import CellPredictor
from scvi_perturb.predictors._requests import parse_requests

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark._task import Task
    from scvi_perturb.benchmark._trial import Trial
    from scvi_perturb.predictors import Predictor

__all__ = ["ask", "read_cells", "read_means"]


def ask(predictor: Predictor, trial: Trial) -> list[Population | None]:
    """Return what a fitted method predicts for each case of a trial; None where it refuses.

    Methods with `sample` are judged by as many cells as were measured, the others by their means.
    The standard error of the mean change is taken from `predict` where the method states one.
    A method that refuses the whole request is asked for one condition at a time.

    Raises
    ------
    UnknownPerturbationError, SchemaError
        If it refuses every condition.
    SchemaError
        If the answer is not to what was asked, or not in the units it says.
    LeakError
        If held-out cells or profiles are in it.
    """
    try:
        answers: list[_Answer | None] = [_Answer.of(predictor, trial)]
        parts = [trial]
    except (UnknownPerturbationError, SchemaError) as refusal:
        parts = [_single(trial, i) for i in range(len(trial.cases))]
        answers = [_answer_or_none(predictor, part) for part in parts]
        if all(answer is None for answer in answers):
            raise refusal from None
    found: list[Population | None] = []
    for answer, part in zip(answers, parts, strict=True):
        if answer is None:
            found.append(None)
        else:
            populations = answer.read(part)
            refuse_copies(populations, part)
            found += populations
    return found


@dataclass(frozen=True)
class _Answer:
    """What a method returned: cells and, where it states their error, means; or means alone."""

    cells: AnnData | None
    means: AnnData | None

    @classmethod
    def of(cls, predictor: Predictor, trial: Trial) -> Self:
        if trial.task.values == "effects" or not isinstance(predictor, CellPredictor):
            return cls(None, predictor.predict(trial.requests))
        most = max((case.n_cells for case in trial.cases), default=1)
        cells = predictor.sample(trial.requests, n_samples=max(most, 2), seed=trial.seed)
        stated = getattr(predictor, "states_error", False)
        return cls(cells, predictor.predict(trial.requests) if stated else None)

    def read(self, trial: Trial) -> list[Population]:
        if self.cells is None:
            return read_means(self.means, trial) if self.means is not None else []
        found = read_cells(self.cells, trial)
        if self.means is None:
            return found
        stated = read_means(self.means, trial)
        return [
            replace(cells, effect_mean=mean.mean, effect_std=mean.effect_std)
            for cells, mean in zip(found, stated, strict=True)
        ]


def _answer_or_none(predictor: Predictor, trial: Trial) -> _Answer | None:
    try:
        return _Answer.of(predictor, trial)
    except (UnknownPerturbationError, SchemaError):
        return None


def _single(trial: Trial, i: int) -> Trial:
    """Return the trial with one of its conditions alone."""
    requests = trial.requests.iloc[[i]].reset_index(drop=True)
    return replace(trial, requests=requests, cases=(trial.cases[i],))


def read_cells(answer: AnnData, trial: Trial) -> list[Population]:
    """Return predicted cells as one population a case.

    Parameters
    ----------
    answer
        Predicted cells. `X`: raw counts, or log-normalised cells if
        `uns["scvi_perturb"]["units"]` says "log1p(counts per 10,000)"; `obs`: the columns of the
        condition and the context, as in `trial.requests`.
    trial
        What was asked.

    Returns
    -------
    As many predicted cells of each case as were measured; all, where fewer were predicted.

    Raises
    ------
    SchemaError
        If conditions are missing or were not asked for, genes differ, or values are neither.
    """
    answer = _with_genes(answer, trial)
    logged = str(answer.uns.get(UNS_KEY, {}).get("units", "counts")).startswith("log1p")
    values = answer.X
    if not logged:
        check_raw_counts(values, where="the prediction's X")
    elif np.min(values.data if sparse.issparse(values) else values) < 0:
        msg = (
            "Predicted cells have negative values; expected log1p of counts per 10,000, which are "
            "0 or more. Clip them, or predict counts."
        )
        raise SchemaError(msg)
    found = []
    for case, rows in zip(trial.cases, _rows_of_cases(answer.obs, trial), strict=True):
        wanted = rows[: max(case.n_cells, 2)]
        if len(wanted) < 2:
            msg = (
                f"The prediction has {len(wanted)} cell of {case.name!r}; a population needs at "
                "least 2. Sample more cells."
            )
            raise SchemaError(msg)
        taken = values[wanted]
        found.append(
            Population.from_cells(taken, profile="pseudobulk")
            if logged
            else Population.from_counts(taken)
        )
    return found


def read_means(answer: AnnData, trial: Trial) -> list[Population]:
    """Return predicted means, one row a condition, as one population a case.

    Raises
    ------
    SchemaError
        If conditions are missing, come twice or were not asked for, genes differ, or a value is
        not finite.
    """
    answer = _with_genes(answer, trial)
    values = np.asarray(_dense(answer.X), np.float64)
    if not np.isfinite(values).all():
        msg = "Predicted means have values that are not finite; expected a number for every gene."
        raise SchemaError(msg)
    spread = answer.layers.get("std")
    found = []
    for case, rows in zip(trial.cases, _rows_of_cases(answer.obs, trial), strict=True):
        if len(rows) > 1:
            msg = f"{case.name!r} was predicted {len(rows)} times; expected one row a condition."
            raise SchemaError(msg)
        std = None if spread is None else np.asarray(_dense(spread[rows[0]]), np.float64).ravel()
        found.append(Population(values[rows[0]], effect_std=std))
    return found


def _rows_of_cases(obs: pd.DataFrame, trial: Trial) -> list[NDArray[np.intp]]:
    """Return the rows of an answer that belong to each case."""
    asked = _identities(trial.requests, trial.task, what="The request")[0]
    given, code = _identities(obs, trial.task, what="The prediction")
    place = {identity: i for i, identity in enumerate(given)}
    missing = [case.name for case, one in zip(trial.cases, asked, strict=True) if one not in place]
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
    columns = [*task.keys.columns.values(), *task.context_keys]
    absent = [column for column in columns if column not in table]
    if absent:
        msg = f"{what} has no column {absent[0]!r} in obs; it has {sorted(map(str, table))}."
        raise SchemaError(msg)
    first, code = row_codes(table, columns)
    distinct = pd.DataFrame({column: table[column].iloc[first].tolist() for column in columns})
    parsed = parse_requests(distinct, keys=task.keys, context_keys=task.context_keys)
    names: dict[Any, int] = {}
    merged = np.array([names.setdefault(request, len(names)) for request in parsed])
    return list(names), merged[code]


def _with_genes(answer: AnnData, trial: Trial) -> AnnData:
    """Return the answer with the genes of the screen, in their order."""
    genes = trial.visible.var_names.astype(str)
    names = answer.var_names.astype(str)
    if names.equals(genes):
        return answer
    missing, extra = genes.difference(names), names.difference(genes)
    if len(missing) or len(extra) or not names.is_unique:
        some = [*missing[:2], *extra[:2]]
        msg = (
            f"The prediction has {len(names)} genes, {len(missing)} of the screen's are missing "
            f"and {len(extra)} are not the screen's ({some}). Predict the genes of the screen."
        )
        raise SchemaError(msg)
    return answer[:, genes].copy()


def _dense(values: Any) -> NDArray[np.floating]:  # noqa: ANN401
    return values.toarray() if sparse.issparse(values) else np.asarray(values)
