"""From scores of conditions to what a reader believes: beside trivial, beside a replicate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from scvi_perturb.benchmark._method import REPLICATE
from scvi_perturb.metrics import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

__all__ = ["summarize", "with_energy_ratio"]

#: The method whose energy distance is the unit of `energy_ratio`.
SHIFTED: Final = "shifted_control"
_TRIVIAL = ("mean", "cells")
_INTERVAL = (2.5, 97.5)
_ROUNDING = 1e-6


def summarize(frame: pd.DataFrame, *, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return each metric of each method with its score between trivial and replicate.

    `s = (u - b) / (r - b)`: 0 is no better than the best trivial prediction, 1 as good as
    repeating the experiment; it is not clipped. Intervals are of a bootstrap over conditions, the
    same resamples for all methods. Scores of one condition are averaged over seeds first. The
    best trivial prediction is chosen for each metric by the result itself, among those defined
    wherever the method is: it is a strong opponent, not an honest predictor.

    Parameters
    ----------
    frame
        Tidy scores, from `Results.frame`.
    n_boot
        Number of bootstrap samples.
    seed
        Seed of the bootstrap.

    Returns
    -------
    One row a task, method and metric: `u` with `u_low`, `u_high` (95 %), `best_trivial` and its
    value `b`, `r`, `s` with `s_low`, `s_high`, and the numbers of conditions and seeds. `b`, `r`
    and `s` are over the conditions in which all are defined. NaN where there is no replicate, or
    where it is no better than the trivial prediction.
    """
    frame = with_energy_ratio(frame)
    rows = []
    for (task, metric), part in frame.groupby(["task", "metric"], sort=False):
        table = _Table(part, str(metric), n_boot=n_boot, seed=seed)
        rows += [{"task": task, "metric": metric} | row for row in table.rows()]
    return pd.DataFrame(rows)


def with_energy_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the scores with `energy_ratio`: energies from the replicate's to shifted controls'."""
    keys = ["task", "seed", "fold", "condition"]
    energy = frame[frame["metric"] == "energy"]
    scale = energy[energy["method"].isin([SHIFTED, REPLICATE])]
    if not {SHIFTED, REPLICATE} <= set(scale["method"]):
        return frame
    wide = scale.pivot(index=keys, columns="method", values="numerator")
    made = energy.join(wide, on=keys)
    numerator = made["numerator"] - made[REPLICATE]
    denominator = made[SHIFTED] - made[REPLICATE]
    ratio = made.assign(metric="energy_ratio", numerator=numerator, denominator=denominator)
    ratio = ratio.drop(columns=[SHIFTED, REPLICATE]).dropna(subset=["numerator", "denominator"])
    rest = frame[frame["metric"] != "energy_ratio"]
    return pd.concat([rest, ratio], ignore_index=True)


class _Table:
    """One metric of one task: numerators and denominators, methods by conditions."""

    def __init__(self, part: pd.DataFrame, metric: str, *, n_boot: int, seed: int) -> None:
        self.metric = METRICS[metric]
        first = part.drop_duplicates("method")
        names = [str(name) for name in first["method"]]
        self.place = {name: i for i, name in enumerate(names)}
        self.roles = dict(zip(names, map(str, first["role"]), strict=True))
        self.n_seeds = part.groupby("method", sort=False)["seed"].nunique().tolist()
        mean = part.groupby(["method", "condition"])[["numerator", "denominator"]].mean()
        self.above, self.below = (
            mean[name].unstack("condition").loc[names].to_numpy(np.float64)
            for name in ("numerator", "denominator")
        )
        self.defined = np.isfinite(self.above) & np.isfinite(self.below)
        n = self.above.shape[1]
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)
        self.weights = np.vstack([np.ones((1, n)), draws])

    def rows(self) -> Iterable[dict[str, object]]:
        """Yield the row of each method."""
        for method, i in self.place.items():
            seen = self.defined[i]
            if not seen.any():
                continue
            alone = self._totals(method, seen)
            row = {
                "method": method,
                "role": self.roles[method],
                "n_conditions": int(seen.sum()),
                "n_seeds": self.n_seeds[i],
                "u": alone[0],
                **_interval("u", alone),
            }
            yield row | self._beside(method, seen)

    def _beside(self, method: str, seen: NDArray[np.bool_]) -> dict[str, object]:
        """Return what the best trivial prediction and the replicate reach, and the score."""
        common = seen.copy()
        if REPLICATE in self.place:
            common &= self.defined[self.place[REPLICATE]]
        losses = {
            name: self._losses(name, common)[0]
            for name, i in self.place.items()
            if self.roles[name] in _TRIVIAL and (self.defined[i] >= seen).all()
        }
        losses = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
        row: dict[str, object] = {"best_trivial": "", "b": np.nan, "r": np.nan, "s": np.nan}
        score = np.full(2, np.nan)
        if losses:
            best = min(losses, key=lambda name: losses[name])
            row |= {"best_trivial": best, "b": self._totals(best, common)[0]}
            if REPLICATE in self.place:
                three = (self._losses(name, common) for name in (method, best, REPLICATE))
                score = self._score(*three)
                row |= {"r": self._totals(REPLICATE, common)[0], "s": score[0]}
        return row | _interval("s", score)

    def _totals(self, method: str, where: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the metric over all conditions, then over each bootstrap sample."""
        i = self.place[method]
        total = self.weights @ np.where(where, self.below[i], 0.0)
        above = self.weights @ np.where(where, self.above[i], 0.0)
        made: NDArray[np.float64] = above / np.where(total > 0, total, np.nan)
        return made

    def _losses(self, method: str, where: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the totals turned so that lower is better.

        Distances of single conditions from a best value are averaged, so that they do not cancel.
        """
        if self.metric.direction != "nearer":
            return np.asarray(self.metric.loss(self._totals(method, where)))
        i = self.place[method]
        away = np.where(where, self.metric.loss(self.above[i] / self.below[i]), 0.0)
        made: NDArray[np.float64] = self.weights @ away / np.maximum(self.weights @ where, 1)
        return made

    @staticmethod
    def _score(
        own: NDArray[np.float64], best: NDArray[np.float64], again: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the score of all conditions, then of each bootstrap sample.

        A room between trivial and replicate that is rounding is none. Where all conditions leave
        no room, samples of them have no score either.
        """
        room = best - again
        room = np.where(room > _ROUNDING * np.abs(best), room, np.nan)
        made: NDArray[np.float64] = (best - own) / room
        return made if np.isfinite(made[0]) else np.full_like(made, np.nan)


def _interval(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Return the 95 % interval of bootstrap values, the first of which is the estimate."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, _INTERVAL) if len(drawn) else (np.nan, np.nan)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}
