"""One method in one trial: fit, ask, score."""

from __future__ import annotations

import time
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scvi_perturb._errors import LeakError, SchemaError, UnknownPerturbationError
from scvi_perturb.benchmark._answer import ask, read_cells, read_means
from scvi_perturb.benchmark._curves import curves
from scvi_perturb.benchmark._leaks import refuse_copied_profiles
from scvi_perturb.benchmark._memory import peak_memory, reset_peak_memory
from scvi_perturb.benchmark._method import REPLICATE, Setting
from scvi_perturb.benchmark._record import Record, fingerprint, versions
from scvi_perturb.metrics import METRICS, Comparison, score_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scvi_perturb.benchmark._method import Method
    from scvi_perturb.benchmark._trial import Trial
    from scvi_perturb.metrics import Population
    from scvi_perturb.predictors import Predictor

__all__ = ["evaluate", "judge", "judge_replicate"]


def evaluate(trial: Trial, predicted: AnnData, *, cells: bool = True) -> pd.DataFrame:
    """Score a prediction that was made elsewhere, by whatever means.

    Parameters
    ----------
    trial
        What was asked: `trial.requests` are the conditions, `trial.visible` what may be seen.
    predicted
        Predicted cells (`X`: raw counts; or log-normalised, where `uns["scvi_perturb"]["units"]`
        says "log1p(counts per 10,000)"), or one row a condition with its mean. `obs` has the
        columns of `trial.requests`.
    cells
        Whether rows are cells; False takes them for means.

    Returns
    -------
    One row a metric and condition, as `scvi_perturb.metrics.score_all`.

    Raises
    ------
    SchemaError
        If conditions are missing or were not asked for, genes differ, or values are not what they
        are said to be.
    LeakError
        If held-out cells or profiles are in the prediction.
    """
    found = read_cells(predicted, trial) if cells else read_means(predicted, trial)
    refuse_copied_profiles(found, trial)
    return score_populations(found, trial)[0]


def judge(trial: Trial, method: Method) -> Record:
    """Fit a method on what may be seen, ask it, and score its answer.

    A method that knows too little of a condition, and any other error, is recorded with its
    message. A leak is raised: it fails the run.

    Raises
    ------
    LeakError
        If held-out cells are in the answer.
    """
    blank = _blank(trial, method)
    with warnings.catch_warnings(record=True) as seen:
        warnings.filterwarnings("always", category=UserWarning, module=r"scvi_perturb\.")
        record = _judged(trial, method, blank)
    return replace(record, warnings=sorted({str(one.message) for one in seen}))


def _judged(trial: Trial, method: Method, blank: Record) -> Record:
    task = trial.task
    setting = Setting(task.kind, task.values, trial.features, trial.seed)
    before = reset_peak_memory()
    try:
        predictor = method.make(setting)
        start = time.perf_counter()
        predictor.fit(
            trial.visible,
            trial.visible_split,
            keys=task.keys,
            context_keys=task.context_keys,
            layer=task.layer,
        )
        fitted = time.perf_counter()
        answers = ask(predictor, trial)
        answered = time.perf_counter()
        peak = peak_memory() - before
        found = [population for answer in answers for population in answer.read()]
        found = _with_likelihood(predictor, found, trial)
        frame, cases = score_populations(found, trial)
    except LeakError as error:
        msg = f"{method.title}, task {task.name!r}: {error}"
        raise LeakError(msg) from None
    except SystemExit as error:  # what Lightning makes of an interruption while it trains
        raise KeyboardInterrupt from error
    except (UnknownPerturbationError, SchemaError) as error:
        return replace(blank, status="refused", message=str(error))
    except Exception as error:  # one method's fault must not end the runs of the others
        return replace(blank, status="failed", message=f"{type(error).__name__}: {error}")
    cost = {
        "train_seconds": fitted - start,
        "predict_seconds": answered - fitted,
        "peak_mib": peak,
        "n_trained": float(trial.visible.n_obs),
        "n_predicted": float(sum(a.cells.n_obs for a in answers if a.cells is not None)),
        "n_parameters": float(getattr(predictor, "n_parameters", np.nan)),
    }
    done = replace(blank, scores=_columns(frame), cost=cost, curves=curves(cases))
    refused = [case.name for p, case in zip(found, trial.cases, strict=True) if p is None]
    if not refused:
        return done
    message = f"refused {len(refused)} of {len(found)} conditions: {', '.join(refused[:5])}"
    return replace(done, status="partial", message=message)


def judge_replicate(trial: Trial) -> Record:
    """Score one half of the real cells of each condition as the prediction of the other half."""
    cases = [case.replicate for case in trial.cases if case.replicate is not None]
    scores = _columns(score_all(cases)) if cases else {}
    return replace(_blank(trial, None), scores=scores, curves=curves(cases))


def _blank(trial: Trial, method: Method | None) -> Record:
    """Return a record without scores: what is judged, on what; the replicate without a method."""
    return Record(
        task=trial.task.name,
        method=REPLICATE if method is None else method.name,
        role="replicate" if method is None else method.role,
        seed=trial.seed,
        fold=trial.fold,
        fingerprint=fingerprint(trial.task, method, trial.seed, trial.fold),
        provenance=_provenance(trial),
        conditions=[{"condition": case.name} | case.about for case in trial.cases],
    )


def score_populations(
    found: Sequence[Population | None], trial: Trial
) -> tuple[pd.DataFrame, list[Comparison]]:
    """Return the scores of what was predicted for each case, and the comparisons behind them.

    A condition with a single cell, and one that was refused, has no scores.
    """
    pairs = [(p, case.truth) for p, case in zip(found, trial.cases, strict=True)]
    cases = [Comparison(p, truth) for p, truth in pairs if p is not None and truth is not None]
    if not cases:
        names = [case.name for case in trial.cases]
        msg = f"No held-out condition has two cells or more, so none can be scored: {names[:3]}."
        raise SchemaError(msg)
    return score_all(cases), cases


def _with_likelihood(
    predictor: Predictor, found: list[Population | None], trial: Trial
) -> list[Population | None]:
    """Add the likelihood of the real cells, for methods that have one, after they answered."""
    nll = getattr(predictor, "nll", None)
    if nll is None or trial.task.values != "counts":
        return found
    return [
        p and replace(p, nll=float(np.mean(nll(trial.answers[case.rows]))))
        for p, case in zip(found, trial.cases, strict=True)
    ]


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Return the table of scores as lists, without metrics that are defined nowhere."""
    defined = frame.groupby("metric")["numerator"].transform(lambda v: v.notna().any())
    kept = frame[defined][["condition", "metric", "numerator", "denominator"]]
    return {str(name): kept[name].tolist() for name in kept}


def _provenance(trial: Trial) -> dict[str, Any]:
    split = trial.split
    return {
        "versions": versions(),
        "screen": split.data_hash,
        "split": {
            "kind": split.kind,
            "seed": split.seed,
            "parameters": split.parameters,
            "n_cells": {
                part: len(getattr(split, part)) for part in ("train", "validation", "test")
            },
        },
        "units": {name: metric.units for name, metric in METRICS.items()},
    }
