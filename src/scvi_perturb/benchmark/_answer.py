"""What a method answers, checked, as populations that can be compared with the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from scvi_perturb._constants import UNS_KEY
from scvi_perturb._errors import SchemaError, UnknownPerturbationError
from scvi_perturb.benchmark._leaks import refuse_copied_cells, refuse_copied_profiles
from scvi_perturb.data._counts import check_raw_counts
from scvi_perturb.data._keys import row_codes
from scvi_perturb.metrics import Population, log_normalize
from scvi_perturb.predictors import CellPredictor
from scvi_perturb.predictors._requests import parse_requests

if TYPE_CHECKING:
    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.benchmark._task import Task
    from scvi_perturb.benchmark._trial import Trial
    from scvi_perturb.predictors import Predictor

__all__ = ["Answer", "ask", "read_cells", "read_means"]


@dataclass(frozen=True)
class Answer:
    """What a method returned for a trial, or for one condition of it; nothing if it refused."""

    trial: Trial
    cells: AnnData | None = None
    means: AnnData | None = None

    @property
    def refused(self) -> bool:
        """Whether there is no answer."""
        return self.cells is None and self.means is None

    def read(self) -> list[Population | None]:
        """Return one population a case; None where the method refused.

        The mean of a method that has both is what it predicts, not that of the cells it draws,
        which has their sampling noise besides; unless what it predicts is no pseudobulk.

        Raises
        ------
        SchemaError
            If the answer is not to what was asked, or not in the units it says.
        LeakError
            If held-out cells or profiles are in it.
        """
        if self.refused:
            return [None] * len(self.trial.cases)
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


def ask(predictor: Predictor, trial: Trial) -> list[Answer]:
    """Return what a fitted method answers.

    Methods with `sample` are judged by cells, and all by the means that they predict. A method
    that refuses the whole request is asked for one condition at a time. All are asked for the same
    number of cells, so that it tells nothing of what was measured.

    Raises
    ------
    UnknownPerturbationError, SchemaError
        If it refuses every condition.
    """
    try:
        return [_answer(predictor, trial)]
    except (UnknownPerturbationError, SchemaError) as refusal:
        answers = [_answer_or_none(predictor, _single(trial, i)) for i in range(len(trial.cases))]
        if all(answer.refused for answer in answers):
            raise refusal from None
        return answers


def _answer(predictor: Predictor, trial: Trial) -> Answer:
    means = predictor.predict(trial.requests)
    if trial.task.values == "effects" or not isinstance(predictor, CellPredictor):
        return Answer(trial, None, means)
    n_samples = trial.task.max_cells
    return Answer(
        trial, predictor.sample(trial.requests, n_samples=n_samples, seed=trial.seed), means
    )


def _answer_or_none(predictor: Predictor, trial: Trial) -> Answer:
    try:
        return _answer(predictor, trial)
    except (UnknownPerturbationError, SchemaError):
        return Answer(trial)


def _single(trial: Trial, i: int) -> Trial:
    """Return the trial with one of its conditions alone."""
    requests = trial.requests.iloc[[i]].reset_index(drop=True)
    return replace(trial, requests=requests, cases=(trial.cases[i],))


def _is_pseudobulk(means: AnnData | None) -> bool:
    made = {} if means is None else means.uns.get(UNS_KEY, {})
    return made.get("profile", "pseudobulk") == "pseudobulk"


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
    As many predicted cells of each case as were measured, a random choice of them.

    Raises
    ------
    SchemaError
        If conditions are missing or were not asked for, there are fewer cells than were measured,
        genes differ, or values are neither.
    LeakError
        If held-out cells are among them.
    """
    answer = _with_genes(answer, trial)
    logged = str(answer.uns.get(UNS_KEY, {}).get("units", "counts")).startswith("log1p")
    values = answer.X
    if logged:
        _check_logged(values)
    else:
        check_raw_counts(values, where="the prediction's X")
    found = []
    for case, rows in zip(trial.cases, _rows_of_cases(answer.obs, trial), strict=True):
        wanted = max(case.n_cells, 2)
        if len(rows) < wanted:
            msg = (
                f"The prediction has {len(rows)} cells of {case.name!r}, of which {wanted} were "
                f"measured. Predict at least as many; {trial.task.max_cells} always suffice."
            )
            raise SchemaError(msg)
        refuse_copied_cells(values[rows] if logged else log_normalize(values[rows]), case, trial)
        chosen = np.random.default_rng(trial.seed).choice(rows, wanted, replace=False)
        taken = values[np.sort(chosen)]
        found.append(
            Population.from_cells(taken, profile="pseudobulk")
            if logged
            else Population.from_counts(taken)
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


def read_means(answer: AnnData, trial: Trial) -> list[Population]:
    """Return predicted means, one row a condition, as one population a case.

    Raises
    ------
    SchemaError
        If conditions are missing, come twice or were not asked for, genes differ, a value is not
        finite, or a standard error is not finite or negative.
    """
    answer = _with_genes(answer, trial)
    values = np.asarray(_dense(answer.X), np.float64)
    if not np.isfinite(values).all():
        msg = "Predicted means have values that are not finite; expected a number for every gene."
        raise SchemaError(msg)
    spread = answer.layers.get("std") if "std" in answer.layers else None
    if spread is not None:
        _check_spread(spread)
    found = []
    for case, rows in zip(trial.cases, _rows_of_cases(answer.obs, trial), strict=True):
        if len(rows) > 1:
            msg = f"{case.name!r} was predicted {len(rows)} times; expected one row a condition."
            raise SchemaError(msg)
        std = None if spread is None else np.asarray(_dense(spread[rows[0]]), np.float64).ravel()
        found.append(Population(values[rows[0]], effect_std=std))
    return found


def _check_spread(spread: Any) -> None:  # noqa: ANN401
    stated = np.asarray(_dense(spread))
    if not np.isfinite(stated).all() or stated.min(initial=0.0) < 0:
        msg = (
            "Stated standard errors (layer 'std') are negative or not finite; expected a number of "
            "0 or more for every gene. State none rather than some."
        )
        raise SchemaError(msg)


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
