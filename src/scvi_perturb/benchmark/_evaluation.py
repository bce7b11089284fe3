"""Evaluate one method in one trial: fit, predict, score, and measure its cost."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scvi_perturb._checks import checked
from scvi_perturb._core import LeakError, SchemaError, UnknownPerturbationError
from scvi_perturb._version import versions
from scvi_perturb.benchmark._predictions import (
    predict_trial,
    read_cells,
    read_means,
    refuse_copied_profiles,
)
from scvi_perturb.benchmark.methods import REPLICATE, Setting
from scvi_perturb.benchmark.results import Record, fingerprint
from scvi_perturb.metrics import METRICS, Comparison, effect_pit, score_all, top_genes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from anndata import AnnData

    from scvi_perturb.benchmark.methods import Method
    from scvi_perturb.benchmark.trial import Trial
    from scvi_perturb.metrics import CellPopulation
    from scvi_perturb.predictors.request import Predictor

#: Equal bins of ranks.
_N_BINS: Final = 20
#: Genes that change most, and conditions, of which figures show the changes.
_N_GENES: Final = 20
_MOST_CONDITIONS: Final = 50
_STATUS: Final = Path("/proc/self/status")


@checked
def evaluate(trial: Trial, predicted: AnnData, *, cells: bool = True) -> pd.DataFrame:
    """Score a prediction that was made elsewhere.

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
    return _score_populations(found, trial)[0]


def score_method(trial: Trial, method: Method) -> Record:
    """Fit a method on the visible cells, and score its prediction.

    A method that knows too little of a condition, and any other error, is recorded with its
    message. A leak is raised: it fails the run.

    Raises `LeakError`: If held-out cells are in the prediction.
    """
    blank = _blank(trial, method)
    with warnings.catch_warnings(record=True) as seen:
        warnings.filterwarnings("always", category=UserWarning, module=r"scvi_perturb\.")
        record = _scored(trial, method, blank)
    return replace(record, warnings=sorted({str(one.message) for one in seen}))


def _scored(trial: Trial, method: Method, blank: Record) -> Record:
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
        )
        fitted = time.perf_counter()
        predictions = predict_trial(predictor, trial)
        predicted = time.perf_counter()
        peak = peak_memory() - before
        found = [population for made in predictions for population in made.read()]
        found = _with_likelihood(predictor, found, trial)
        frame, compared = _score_populations(found, trial)
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
        "predict_seconds": predicted - fitted,
        "peak_mib": peak,
        "n_trained": float(trial.visible.n_obs),
        "n_predicted": float(
            sum(made.cells.n_obs for made in predictions if made.cells is not None)
        ),
        "n_parameters": float(getattr(predictor, "n_parameters", np.nan)),
    }
    done = replace(blank, scores=_columns(frame), cost=cost, curves=_curves(compared))
    refused = [c.name for p, c in zip(found, trial.conditions, strict=True) if p is None]
    if not refused:
        return done
    message = f"refused {len(refused)} of {len(found)} conditions: {', '.join(refused[:5])}"
    return replace(done, status="partial", message=message)


def score_replicate(trial: Trial) -> Record:
    """Score one half of the real cells of each condition as the prediction of the other half."""
    compared = [one.replicate for one in trial.conditions if one.replicate is not None]
    scores = _columns(score_all(compared)) if compared else {}
    return replace(_blank(trial, None), scores=scores, curves=_curves(compared))


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
        conditions=[{"condition": one.name} | one.about for one in trial.conditions],
    )


def _score_populations(
    found: Sequence[CellPopulation | None], trial: Trial
) -> tuple[pd.DataFrame, list[Comparison]]:
    """Return the scores of what was predicted of each condition, and what was compared.

    A condition with a single cell, and one that was refused, has no scores.
    """
    pairs = [(p, one.truth) for p, one in zip(found, trial.conditions, strict=True)]
    compared = [Comparison(p, truth) for p, truth in pairs if p is not None and truth is not None]
    if not compared:
        names = [one.name for one in trial.conditions]
        msg = f"No held-out condition has two cells or more, so none can be scored: {names[:3]}."
        raise SchemaError(msg)
    return score_all(compared), compared


def _with_likelihood(
    predictor: Predictor, found: list[CellPopulation | None], trial: Trial
) -> list[CellPopulation | None]:
    """Add the likelihood of the real cells, for methods that have one, after they predicted."""
    nll = getattr(predictor, "nll", None)
    if nll is None or trial.task.values != "counts":
        return found
    return [
        p and replace(p, nll=float(np.mean(nll(trial.held_out_cells[one.rows]))))
        for p, one in zip(found, trial.conditions, strict=True)
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


def _curves(compared: Sequence[Comparison]) -> dict[str, list[float]]:
    """Return shares of ranks in equal bins, of cells and of effects, and changes of top genes."""
    found = _changes(compared[:_MOST_CONDITIONS])
    of_cells = [
        one.ranks.ravel()
        for one in compared
        if one.predicted.cells is not None and one.truth.observed.cells is not None
    ]
    if of_cells:
        found["pit"] = _shares(np.concatenate(of_cells))
    of_effects = [
        effect_pit(*one.stated_effects) for one in compared if one.predicted.effect_std is not None
    ]
    if of_effects:
        found["effect_pit"] = _shares(np.concatenate(of_effects))
    return found


def _shares(ranks: np.ndarray) -> list[float]:
    counts, _ = np.histogram(ranks[np.isfinite(ranks)], bins=_N_BINS, range=(0.0, 1.0))
    return [float(share) for share in counts / max(counts.sum(), 1)]


def _changes(compared: Sequence[Comparison]) -> dict[str, list[float]]:
    predicted: list[float] = []
    observed: list[float] = []
    for one in compared:
        control = one.truth.control.mean
        genes = top_genes(one.truth.observed.mean, control, _N_GENES)
        genes = genes[one.truth.kept[genes]]
        predicted += [float(x) for x in (one.predicted.mean - control)[genes]]
        observed += [float(x) for x in (one.truth.observed.mean - control)[genes]]
    return {"predicted": predicted, "observed": observed}


@checked
def reset_peak_memory() -> float:
    """Forget the peak so far, where the system can, and return the memory now held, in MiB."""
    with suppress(OSError):  # where the system does not let it be forgotten
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_mib("VmRSS") if _STATUS.exists() else peak_memory()


@checked
def peak_memory() -> float:
    """Return the largest resident memory of this process, in MiB.

    Linux hands the peak that `getrusage` reports on to child processes; /proc does not.
    """
    if _STATUS.exists():
        return _status_mib("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _status_mib(field: str) -> float:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) / 2**10
    msg = f"There is no {field} in {_STATUS}."
    raise OSError(msg)
