"""Mean profiles and effects of drawn populations, with their sampling intervals."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData

from scvi_perturb._constants import TARGET_SUM
from scvi_perturb.data import read_rows
from scvi_perturb.model._draw import expected_proportions
from scvi_perturb.model._result import condition_frame

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi_perturb.model._draw import Drawn
    from scvi_perturb.model._reference import Reference
    from scvi_perturb.model._request import Request
    from scvi_perturb.model._result import Plan
    from scvi_perturb.model._screen import Screen

__all__ = ["effects_adata", "effects_table"]

N_BOOTSTRAP = 200


def effects_adata(
    drawn: Iterator[Drawn],
    plan: Plan,
    request: Request,
    cells: Reference,
    *,
    screen: Screen,
    likelihood: str,
    interval: float,
    seed: int | None,
) -> AnnData:
    """Return one row a condition: profile, effect, and a bootstrap interval over cells.

    Reference cells are resampled `N_BOOTSTRAP` times, each together with the cells drawn from
    it: a drawn cell keeps much of its reference, and their difference is what is uncertain.
    From a single reference cell no interval can be had, and it is NaN.
    """
    random = np.random.default_rng(seed)
    rows = []
    shares = (
        (int(plan.row[i]), share)
        for chunk in drawn
        for i, share in zip(chunk.cells, expected_proportions(chunk, likelihood), strict=True)
    )
    for row, group in groupby(shares, key=lambda pair: pair[0]):
        used = plan.reference[plan.row == row]
        expected = np.stack([share for _, share in group]) * cells.library[used][:, None]
        rows.append(_effect(expected, cells, used, interval, random))
    layers = {key: np.stack([r[key] for r in rows]) for key in rows[0]}
    return effects_table(layers.pop("profile"), layers, plan, request, screen)


def effects_table(
    profile: np.ndarray,
    layers: dict[str, np.ndarray],
    plan: Plan,
    request: Request,
    screen: Screen,
) -> AnnData:
    """Return profiles and layers, `(n_rows, n_genes)` each, with a row of `obs` a condition."""
    frame = condition_frame(request, screen)
    frame["n_cells"] = np.bincount(plan.row, minlength=len(request))
    frame.index = pd.Index([f"row{i}" for i in range(len(frame))])
    for column in frame:
        if frame[column].dtype == object:
            frame[column] = frame[column].astype("category")
    return AnnData(
        X=profile, obs=frame, var=pd.DataFrame(index=pd.Index(screen.genes)), layers=layers
    )


def _effect(
    expected: np.ndarray,
    cells: Reference,
    used: np.ndarray,
    interval: float,
    random: np.random.Generator,
) -> dict[str, np.ndarray]:
    """Return profile, effect and interval of one population, each `(n_genes,)`.

    `expected` holds the expected counts of the drawn cells, `used` the reference cell of each.
    Both profiles are those of summed counts.
    """
    pool, place = np.unique(used, return_inverse=True)
    control, library = read_rows(cells.counts, pool), cells.library[pool].astype(float)
    profile = _log(expected.sum(axis=0, dtype=np.float64) / cells.library[used].sum())
    effect = profile - _log(cells.profile(pool))
    n = len(pool)
    weights = random.multinomial(n, np.full(n, 1 / n), N_BOOTSTRAP).astype(np.float64)
    drawn = weights[:, place]
    predicted = (drawn @ expected) / (drawn @ cells.library[used])[:, None]
    observed = np.asarray(weights @ control) / (weights @ library)[:, None]
    spread = _log(predicted) - _log(observed)
    if n == 1:
        spread = np.full_like(spread, np.nan)
    low, high = np.quantile(spread, [(1 - interval) / 2, (1 + interval) / 2], axis=0)
    results = {
        "profile": profile,
        "lfc": effect,
        "lower": np.minimum(low, effect),
        "upper": np.maximum(high, effect),
        "std": spread.std(axis=0, ddof=1),
    }
    return {key: value.astype(np.float32) for key, value in results.items()}


def _log(share: np.ndarray) -> np.ndarray:
    return np.log1p(TARGET_SUM * share)
