"""The prediction beside simple ones, and beside a repetition of the experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import pandas as pd

from scvi_perturb._errors import UnknownPerturbationError
from scvi_perturb.benchmark.results import CLEAR
from scvi_perturb.metrics import (
    BASIC,
    Comparison,
    Population,
    Space,
    Truth,
    fit_pca,
    log_normalize,
    score,
)
from scvi_perturb.predictors.baselines import Additive, ContextMean, NoChange
from scvi_perturb.predictors.cells import ShiftedControl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

    from scvi_perturb.cli._cases import Case
    from scvi_perturb.cli._screen import Screen
    from scvi_perturb.data.split.record import Split
    from scvi_perturb.metrics import Matrix
    from scvi_perturb.predictors.base import MeanPredictor

__all__ = ["METHOD", "MODEL", "REPLICATE", "agreement", "baselines", "compare", "summary"]

METHOD, MODEL, REPLICATE, NO_CHANGE = "method", "PerturbDiffusion", "replicate", "no change"
_MOST_CELLS: Final = 2000


class Baseline(NamedTuple):
    """A simple predictor: how it is made, and what it does in words."""

    make: Callable[[], MeanPredictor]
    says: str


_NO_CHANGE = Baseline(lambda: NoChange(profile="cell_mean"), "control cells as they are")
_MEAN_PERTURBATION = Baseline(
    lambda: ContextMean("perturbations", profile="cell_mean"),
    "control cells plus the mean change over all training perturbations of the context",
)
_MEAN_CONTEXT = Baseline(
    lambda: ContextMean("contexts", profile="cell_mean"),
    "control cells plus the mean change of the same perturbation in the other contexts",
)
_SUM = Baseline(
    lambda: Additive(profile="cell_mean"), "control cells plus the changes of both parts alone"
)
_OWN = Baseline(
    lambda: Additive(profile="cell_mean"),
    "control cells plus the change of the same condition in the training cells",
)
_BASELINES: Final[dict[str, dict[str, Baseline]]] = {
    "unseen_combination": {"mean perturbation": _MEAN_PERTURBATION, "additive": _SUM},
    "unseen_context": {"mean of contexts": _MEAN_CONTEXT},
    "cells": {"mean perturbation": _MEAN_PERTURBATION, "training mean": _OWN},
}


def baselines(kind: str) -> dict[str, Baseline]:
    """Return the predictors to compare with, for a kind of split."""
    return {NO_CHANGE: _NO_CHANGE, **_BASELINES[kind]}


def compare(
    screen: Screen,
    split: Split,
    asked: Sequence[Case],
    sampled: AnnData,
    *,
    seed: int,
    advance: Callable[[], None],
) -> pd.DataFrame:
    """Score every method on every case.

    Parameters
    ----------
    screen, split, asked
        What was held out of what.
    sampled
        Cells that the model drew, as many for each case, in the order of `asked`.
    seed
        Seed of random halves and draws.
    advance
        Called after every case of every method.

    Returns
    -------
    pandas.DataFrame
        One row a method and case: `method`, `condition`, `n_cells`, `clear_effect`, metrics.
    """
    normalized = log_normalize(screen.adata.X)
    space = Space(fit_pca(normalized[split.train], seed=seed))
    fitted = {
        name: ShiftedControl(baseline.make()).fit(screen.adata, split, context_keys=screen.contexts)
        for name, baseline in baselines(split.kind).items()
    }
    drawn = np.split(np.arange(sampled.n_obs), len(asked))
    rows = []
    for i, case in enumerate(asked):
        observed = normalized[case.observed]
        control = Population.from_cells(normalized[case.control])
        first, second = _halves(observed, seed)
        pairs: dict[str, tuple[Matrix | None, Matrix]] = {
            MODEL: (log_normalize(sampled.X[drawn[i]]), observed),
            **{n: (_cells(p, case), observed) for n, p in fitted.items()},
            REPLICATE: (first, second),
        }
        for method, (cells, truth) in pairs.items():
            advance()
            if cells is None:
                continue
            real = Truth(Population.from_cells(truth), control, space, seed=seed)
            scores = score(Comparison(Population.from_cells(cells), real), BASIC)
            rows.append(
                {METHOD: method, "condition": case.title, "n_cells": len(case.observed)} | scores
            )
    frame = pd.DataFrame(rows)
    clear = pd.Series(agreement(frame) >= CLEAR, index=[case.title for case in asked])
    frame.insert(3, "clear_effect", frame["condition"].map(clear))
    return frame


def agreement(scores: pd.DataFrame) -> NDArray[np.float64]:
    """Return the correlation of the effects of both halves of each case; 0 if undefined."""
    values = scores.loc[scores[METHOD] == REPLICATE, "pearson_delta"]
    return values.fillna(0.0).to_numpy(np.float64)


def _cells(predictor: ShiftedControl, case: Case) -> Matrix | None:
    """Return predicted log-normalised cells; None where the predictor knows too little."""
    few = len(case.control) <= _MOST_CELLS  # then one for each control cell
    try:
        cells: Matrix = predictor.sample(
            case.request, n_samples=None if few else _MOST_CELLS, seed=0
        ).X
    except UnknownPerturbationError:
        return None
    return cells


def _halves(cells: Matrix, seed: int) -> tuple[Matrix, Matrix]:
    order = np.random.default_rng(seed).permutation(cells.shape[0])
    first, second = np.array_split(order, 2)
    return cells[first], cells[second]


def summary(scores: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """Return the mean of each metric over cases with a clear effect, and their number.

    Where no effect is clear, all cases count. Methods stand in the order of a table: simple ones,
    the model, the replicate.
    """
    clear = scores[scores["clear_effect"]]
    used = clear if len(clear) else scores
    means = used.groupby(METHOD, sort=False)[list(BASIC)].mean()
    order = [m for m in means.index if m not in (MODEL, REPLICATE)] + [MODEL, REPLICATE]
    return means.loc[order], used["condition"].nunique()
