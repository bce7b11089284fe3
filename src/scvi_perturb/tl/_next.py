"""Which conditions to measure next."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError, warn
from scvi_perturb.predictors.gaussian_process.condition_gp import ConditionGP
from scvi_perturb.predictors.request import read_request
from scvi_perturb.predictors.stack.stacked_mean import StackedMean

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from scvi_perturb.model.hybrid.model import HybridResidualModel
    from scvi_perturb.predictors.base import MeanPredictor

    Floats = NDArray[np.float64]

#: Share of what was measured that scores below a hit, where no threshold is given.
_HIT_QUANTILE: Final = 0.9


@checked
def next_experiments(
    model: ConditionGP | StackedMean | HybridResidualModel,
    candidates: Sequence[str] | pd.DataFrame,
    n: int,
    *,
    by: Literal["information", "hits", "both"] = "information",
    signature: Mapping[str, float] | None = None,
    threshold: float | None = None,
    n_cells: int | None = None,
    budget: float | None = None,
) -> pd.DataFrame:
    r"""Choose the conditions to measure next: those that teach most, or that are likely hits.

    Conditions are chosen one after the other. Each is counted as measured before the next is
    chosen, by the joint posterior covariance of the Gaussian process over conditions: what it
    would tell about the others needs no second experiment, so that a batch is diverse. The gain of
    a condition is the expected drop of the summed variance of the effects of all candidates,

    .. math:: \sum_i C_{ij}^2 / (C_{jj} + \nu),

    with :math:`C` the posterior covariance and :math:`\nu` the noise of an experiment.

    Parameters
    ----------
    model
        A fitted `ConditionGP` or `StackedMean`, or a trained `HybridResidualModel`.
    candidates
        Conditions that could be measured, as `predict` takes them. A column `cost` makes choices by
        what they bring for their cost.
    n
        Conditions to choose, at most.
    by
        "information": by the gain. "hits": by the probability that the condition is a hit. "both":
        by the sum of both, each relative to the best candidate.
    signature
        Weights by gene: a condition scores the weighted mean of its effects, positive where these
        go with the weights. Needed for hits.
    threshold
        Score of a hit, natural log; None takes the 90 % quantile of the conditions measured.
    n_cells
        Cells of an experiment; None takes as many as a condition has in training on average.
    budget
        Most that all conditions together may cost.

    Returns
    -------
    pandas.DataFrame
        One row a chosen condition, in the order of choice: `rank`, from 1; the columns of
        `candidates`; `gain`, the share of the variance of all candidates that it removes beyond
        those before it; `remaining`, the share left after it; `novelty`, its posterior by prior
        variance; with a signature `score`, `score_std` and `p_hit`, as known before any is
        measured; `total_cost`, where there are costs.

    Raises
    ------
    SchemaError
        If there is no regression to take the covariance from, a signature is needed or has no gene
        of the model, costs are not positive, nothing fits into the budget, or a condition is there
        twice.
    ValueError
        If more conditions are asked for than there are candidates.

    References
    ----------
    Cohn, Ghahramani and Jordan, Active learning with statistical models, Journal of Artificial
    Intelligence Research 1996; Desautels, Krause and Burdick, Parallelizing
    exploration-exploitation tradeoffs in Gaussian process bandit optimization, Journal of Machine
    Learning Research 2014.
    """
    if by != "information" and signature is None:
        msg = f"by={by!r} needs a signature: weights by gene, such as {{'STAT1': 1.0}}."
        raise SchemaError(msg)
    predictor, regression = _regression(model)
    table, cost = _with_costs(candidates, predictor)
    _refuse_twice(table, predictor)
    if n > len(table):
        msg = f"n={n} is above the number of candidates, {len(table)}."
        raise ValueError(msg)
    found = regression.covariance(table)
    noise = regression.hyperparameters_["ratio"]
    if n_cells is not None:
        noise *= _mean_cells(regression) / n_cells
    hits = None
    if signature is not None:
        hits = _Hits.of(predictor, regression, table, signature, threshold)
    pool = _Pool(found.shared.copy(), noise, cost, hits)
    rows = pool.choose(n, by, np.inf if budget is None else budget)
    if not rows:
        msg = f"No candidate fits into budget={budget}; the cheapest costs {cost.min():g}."
        raise SchemaError(msg)
    chosen = [row.place for row in rows]
    made = table.iloc[chosen].reset_index(drop=True)
    made.insert(0, "rank", np.arange(1, len(rows) + 1))
    whole = float(np.trace(found.shared))
    made["gain"] = [row.gain / whole for row in rows]
    made["remaining"] = 1 - made["gain"].cumsum()
    made["novelty"] = (np.diagonal(found.shared) / np.diagonal(found.prior))[chosen]
    if hits is not None:
        spread = np.sqrt(hits.scale * np.diagonal(found.shared))
        made["score"], made["score_std"] = hits.mean[chosen], spread[chosen]
        made["p_hit"] = hits.probability(np.diagonal(found.shared))[chosen]
    if isinstance(candidates, pd.DataFrame) and "cost" in candidates:
        made["cost"], made["total_cost"] = cost[chosen], cost[chosen].cumsum()
    return made


class _Chosen(NamedTuple):
    """A chosen condition, and the variance that it removes."""

    place: int
    gain: float


class _Hits(NamedTuple):
    """Scores of candidates.

    `mean`: Predicted scores, `(n,)`. `scale`: Variance of a score for a condition of variance 1.
    `threshold`: Score of a hit.
    """

    mean: Floats
    scale: float
    threshold: float

    @classmethod
    def of(
        cls,
        predictor: MeanPredictor,
        regression: ConditionGP,
        candidates: pd.DataFrame,
        signature: Mapping[str, float],
        threshold: float | None,
    ) -> _Hits:
        """Predict scores; those measured say how much they vary."""
        names = predictor.profiles.var_names
        weights = names.map(dict(signature)).to_numpy(np.float64, na_value=0.0)
        if not np.abs(weights).sum() > 0:
            msg = (
                f"No gene of the signature, {dict(list(signature.items())[:3])}, is among those of "
                f"the model, such as {list(names[:3])}, with a weight other than 0."
            )
            raise SchemaError(msg)
        if absent := [gene for gene in signature if gene not in names]:
            warn(f"{len(absent)} of {len(signature)} genes of the signature are not among those of "
                 f"the model and count nothing: {', '.join(absent[:5])}.")  # fmt: skip
        weights = weights / np.abs(weights).sum()  # read-only from pandas 3
        measured = np.array([
            change @ weights for seen in predictor.deltas.values() for change in seen.values()
        ])  # fmt: skip
        if threshold is None:
            threshold = float(np.quantile(measured, _HIT_QUANTILE))
        mean = np.asarray(predictor.predict(candidates).layers["lfc"], np.float64) @ weights
        signal = 1 / (1 + regression.hyperparameters_["ratio"])
        scale = regression.hyperparameters_["calibration"] * signal * float((measured**2).mean())
        return cls(mean, max(scale, 1e-12), threshold)

    def probability(self, variances: Floats) -> Floats:
        """Return the probability that each candidate is a hit."""
        spread = np.sqrt(np.maximum(self.scale * variances, 1e-12))
        return np.asarray(ndtr((self.mean - self.threshold) / spread))


class _Pool(NamedTuple):
    """Candidates, and what is known of them.

    `covariance`: Posterior, `(n, n)`; changed as conditions are chosen. `noise`: Variance of a
    measurement, in its units. `cost`: Of each. `hits`: Their scores, or None.
    """

    covariance: Floats
    noise: float
    cost: Floats
    hits: _Hits | None

    def choose(self, n: int, by: str, budget: float) -> list[_Chosen]:
        """Return conditions in the order of choice."""
        rows: list[_Chosen] = []
        free = np.ones(len(self.cost), bool)
        left = budget
        while len(rows) < n and (free & (self.cost <= left)).any():
            gains = self.gains()
            worth = self.worth(gains, by, free) / self.cost
            place = int(np.argmax(np.where(free & (self.cost <= left), worth, -np.inf)))
            rows.append(_Chosen(place, float(gains[place])))
            free[place] = False
            left -= self.cost[place]
            column = self.covariance[:, place].copy()
            self.covariance[:] -= np.outer(column, column) / (column[place] + self.noise)
        return rows

    def gains(self) -> Floats:
        """Return the drop of the summed variance by each candidate."""
        variances = np.diagonal(self.covariance) + self.noise
        return np.asarray((self.covariance**2).sum(axis=0) / np.maximum(variances, 1e-300))

    def worth(self, gains: Floats, by: str, free: NDArray[np.bool_]) -> Floats:
        """Return what is made largest."""
        if by == "information" or self.hits is None:
            return gains
        hits = self.hits.probability(np.maximum(np.diagonal(self.covariance), 0.0))
        if by == "hits":
            return hits
        return gains / max(gains[free].max(), 1e-300) + hits / max(hits[free].max(), 1e-300)


def _regression(model: object) -> tuple[MeanPredictor, ConditionGP]:
    """Return what predicts effects, and the Gaussian process that knows their covariance."""
    predictor = getattr(model, "mean_", model)
    if isinstance(predictor, ConditionGP):
        return predictor, predictor
    if isinstance(predictor, StackedMean):
        stack = predictor.weigh(predictor.likely_scenario() or "seen")
        for member in stack.members.values():
            if isinstance(member, ConditionGP):
                return predictor, member
    msg = (
        f"{type(model).__name__} holds no Gaussian process over conditions, or was not trained; "
        "pass a fitted ConditionGP or StackedMean, or a trained HybridResidualModel."
    )
    raise SchemaError(msg)


def _refuse_twice(table: pd.DataFrame, predictor: MeanPredictor) -> None:
    """Raise `SchemaError` if two candidates are the same condition."""
    requests, _ = read_request(table, None, predictor.profiles)
    if twice := [one for one, n in Counter(requests).items() if n > 1]:
        msg = (
            f"{len(twice)} candidates come more than once, such as {twice[0].condition}; keep one "
            "row each."
        )
        raise SchemaError(msg)


def _with_costs(
    candidates: Sequence[str] | pd.DataFrame, predictor: MeanPredictor
) -> tuple[pd.DataFrame, Floats]:
    """Return candidates as a table without costs, and the cost of each."""
    keys = predictor.profiles.keys
    if not isinstance(candidates, pd.DataFrame):
        return pd.DataFrame({keys.perturbation: list(candidates)}), np.ones(len(candidates))
    if "cost" not in candidates:
        return candidates.reset_index(drop=True), np.ones(len(candidates))
    cost = pd.to_numeric(candidates["cost"], errors="coerce").to_numpy(np.float64)
    if not (np.isfinite(cost) & (cost > 0)).all():
        bad = candidates["cost"][~(np.isfinite(cost) & (cost > 0))]
        msg = f"Column 'cost' holds {bad.iloc[0]} in {len(bad)} rows; expected positive numbers."
        raise SchemaError(msg)
    return candidates.drop(columns="cost").reset_index(drop=True), cost


def _mean_cells(regression: ConditionGP) -> float:
    """Return the number of cells of a training condition, as noise counts them."""
    profiles = regression.profiles
    treated = [not one.is_control for one in profiles.conditions]
    return float(profiles.n_cells[treated].mean())
