"""Summarise scores of conditions relative to trivial predictions and a replicate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb.benchmark.methods import REPLICATE, SHIFTED_CONTROL
from scvi_perturb.metrics import METRICS, energy_ratio

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

_TRIVIAL = ("mean", "cells")
_INTERVAL = (2.5, 97.5)
_ROUNDING = 1e-6
#: Percentile of the bootstrap at which there must still be room for a score.
_ROOM = 5.0


@checked
def summarize(frame: pd.DataFrame, *, n_boot: int = 1000, seed: int | None = 0) -> pd.DataFrame:
    """Return each metric of each method, with its score between trivial and replicate.

    `s = (u - b) / (r - b)`: 0 is no better than the best trivial prediction, 1 as good as
    repeating the experiment; it is not clipped. Intervals are of a bootstrap over perturbations
    (contexts, where there is one perturbation), the same resamples for all methods. Scores of one
    condition are averaged over seeds first. The best trivial prediction is chosen for each metric
    by the result itself: it is a strong opponent, not an honest predictor. What one leaves open is
    filled in from the best of those that answer everywhere.

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
    and `s` are over the conditions in which all are defined. `s` is NaN where there is no
    replicate, or where it is not clearly better than the trivial prediction.
    """
    frame = with_energy_ratio(frame)
    rows = []
    for (task, metric), part in frame.groupby(["task", "metric"], sort=False):
        table = _MetricTable(part, str(metric), n_boot=n_boot, seed=seed)
        rows += [{"task": task, "metric": metric} | row for row in table.rows()]
    return pd.DataFrame(rows)


def with_energy_ratio(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the scores with `energy_ratio`: energies from the replicate's to shifted controls'."""
    keys = ["task", "seed", "fold", "condition"]
    energy = frame[frame["metric"] == "energy"]
    scale = energy[energy["method"].isin([SHIFTED_CONTROL, REPLICATE])]
    if not {SHIFTED_CONTROL, REPLICATE} <= set(scale["method"]):
        return frame
    wide = scale.pivot(index=keys, columns="method", values="numerator")
    made = energy.join(wide, on=keys)
    numerator, denominator = energy_ratio(
        made["numerator"], floor=made[REPLICATE], shifted=made[SHIFTED_CONTROL]
    )
    ratio = made.assign(metric="energy_ratio", numerator=numerator, denominator=denominator)
    ratio = ratio.drop(columns=[SHIFTED_CONTROL, REPLICATE]).dropna(
        subset=["numerator", "denominator"]
    )
    rest = frame[frame["metric"] != "energy_ratio"]
    return pd.concat([rest, ratio], ignore_index=True)


class _MetricTable:
    """One metric of one task: numerators and denominators, methods by conditions."""

    def __init__(self, part: pd.DataFrame, metric: str, *, n_boot: int, seed: int | None) -> None:
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
        self._patch()
        units = _units(part, mean["numerator"].unstack("condition").columns)
        n = units.max() + 1
        draws = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=n_boot)
        self.weights = np.vstack([np.ones((1, len(units))), draws[:, units]])

    def _patch(self) -> None:
        """Fill what a trivial prediction leaves open from the best of those that answer all.

        An opponent that refuses some conditions would else be none at all.
        """
        self.rivals = {name: i for name, i in self.place.items() if self.roles[name] in _TRIVIAL}
        most = self.defined[list(self.rivals.values())].any(axis=0)
        whole = [i for i in self.rivals.values() if (self.defined[i] == most).all()]
        self.rival_above, self.rival_below = self.above.copy(), self.below.copy()
        if not whole or not most.any():
            return
        totals = [self.above[i][most].sum() / self.below[i][most].sum() for i in whole]
        best = whole[int(np.argmin([float(self.metric.loss(total)) for total in totals]))]
        for i in self.rivals.values():
            open_ = most & ~self.defined[i]
            self.rival_above[i, open_] = self.above[best, open_]
            self.rival_below[i, open_] = self.below[best, open_]

    def rows(self) -> Iterable[dict[str, object]]:
        """Yield the row of each method."""
        for method, i in self.place.items():
            seen = self.defined[i]
            if not seen.any():
                continue
            alone = self._totals(i, seen)
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
            name: self._losses(i, common, rival=True)[0]
            for name, i in self.rivals.items()
            if (np.isfinite(self.rival_above[i]) >= common).all()
        }
        losses = {name: loss for name, loss in losses.items() if np.isfinite(loss)}
        row: dict[str, object] = {"best_trivial": "", "b": np.nan, "r": np.nan, "s": np.nan}
        score = np.full(2, np.nan)
        if losses:
            best = min(losses, key=lambda name: losses[name])
            b = self.rivals[best]
            row |= {"best_trivial": best, "b": self._totals(b, common, rival=True)[0]}
            if REPLICATE in self.place:
                r = self.place[REPLICATE]
                score = self._score(
                    self._losses(self.place[method], common, rival=method in self.rivals),
                    self._losses(b, common, rival=True),
                    self._losses(r, common),
                )
                row |= {"r": self._totals(r, common)[0], "s": score[0]}
        return row | _interval("s", score)

    def _totals(
        self, i: int, where: NDArray[np.bool_], *, rival: bool = False
    ) -> NDArray[np.float64]:
        """Return the metric over all conditions, then over each bootstrap sample."""
        above, below = self._terms(i, rival=rival)
        total = self.weights @ np.where(where, below, 0.0)
        found = self.weights @ np.where(where, above, 0.0)
        made: NDArray[np.float64] = found / np.where(total > 0, total, np.nan)
        return made

    def _losses(
        self, i: int, where: NDArray[np.bool_], *, rival: bool = False
    ) -> NDArray[np.float64]:
        """Return the totals turned so that lower is better.

        Distances of single conditions from a best value are averaged, so that they do not cancel.
        """
        if self.metric.direction != "nearer":
            return np.asarray(self.metric.loss(self._totals(i, where, rival=rival)))
        above, below = self._terms(i, rival=rival)
        away = np.where(where, self.metric.loss(above / below), 0.0)
        made: NDArray[np.float64] = self.weights @ away / np.maximum(self.weights @ where, 1)
        return made

    def _terms(self, i: int, *, rival: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return numerators and denominators; of a rival with what it left open filled in."""
        if rival:
            return self.rival_above[i], self.rival_below[i]
        return self.above[i], self.below[i]

    @staticmethod
    def _score(
        own: NDArray[np.float64], best: NDArray[np.float64], again: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the score of all conditions, then of each bootstrap sample.

        There is none where the room between trivial and replicate may as well be noise: where the
        lower end of its 90 % interval is not above 0.
        """
        room = best - again
        drawn = room[1:][np.isfinite(room[1:])]
        low = np.percentile(drawn, _ROOM) if len(drawn) else room[0]
        if not (np.isfinite(room[0]) and low > _ROUNDING * abs(best[0])):
            return np.full_like(own, np.nan)
        made: NDArray[np.float64] = (best - own) / np.where(room > 0, room, np.nan)
        return made


def _units(part: pd.DataFrame, conditions: pd.Index) -> NDArray[np.int64]:
    """Return what each condition is resampled with: those of one perturbation go together.

    Where there is one perturbation only, contexts are what the result is about.
    """
    if "perturbation" not in part:
        return np.arange(len(conditions))
    label = part.drop_duplicates("condition").set_index("condition")["perturbation"]
    codes, names = pd.factorize(label.loc[conditions])
    return codes.astype(np.int64) if len(names) > 1 else np.arange(len(conditions))


def _interval(name: str, values: NDArray[np.float64]) -> dict[str, float]:
    """Return the 95 % interval of bootstrap values, the first of which is the estimate."""
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.percentile(drawn, _INTERVAL) if len(drawn) else (np.nan, np.nan)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}
