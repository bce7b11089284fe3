"""Optimal transport of controls: time by the number of conditions, and what it gives on Kang."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from benchmarks._kang_frame import hold_out, load_kang, score_cells
from benchmarks.kang import KEYS, RESULTS, sampled_cells, train_model
from benchmarks.scale import Row, cpu_seconds, exponent
from scvi_perturb.data.matching import group_controls, match_controls

if TYPE_CHECKING:
    from collections.abc import Iterator

N_CELLS, N_LATENT, CONTROL_SHARE = 20_000, 32, 0.1
SIZES: Final = (60, 200, 2_000)
LIMIT: Final = 2.0
#: The two types with the fewest cells: their groups are the ones whose cells are repeated.
TYPES: Final = ("Dendritic cells", "NK cells")
N_SEEDS = 3


def rows(*, quick: bool) -> Iterator[Row]:
    """Yield seconds and lengths of the way, and the energy on Kang unless `quick`."""
    seconds = {}
    for n_conditions in SIZES:
        seconds[n_conditions], (way, random) = cpu_seconds(lambda n=n_conditions: _matched(n))
        largest = n_conditions == SIZES[-1]
        yield Row(
            f"OT matching, {n_conditions:,} conditions, {N_CELLS:,} cells",
            seconds[n_conditions],
            "CPU s",
            f"<= {LIMIT:g}" if largest else "",
            seconds[n_conditions] <= LIMIT if largest else None,
            f"squared way {way / random:.3f} of that of random controls",
        )
    two = SIZES[0], SIZES[-1]
    grown = exponent(two, (seconds[two[0]], seconds[two[1]]))
    yield Row("OT matching, exponent in conditions", grown, "", "<= 1.3", grown <= 1.3)
    if not quick:
        yield from _kang()


def _matched(n_conditions: int) -> tuple[float, float]:
    """Match a screen; return the mean squared way of treated cells, and that to random controls."""
    rng = np.random.default_rng(0)
    condition = rng.integers(1, n_conditions + 1, N_CELLS)
    condition[rng.random(N_CELLS) < CONTROL_SHARE] = 0
    context, part = rng.integers(2, size=N_CELLS), rng.choice(3, N_CELLS, p=(0.8, 0.1, 0.1))
    moved = 0.7 * rng.normal(size=(n_conditions + 1, N_LATENT))
    latent = (rng.normal(size=(N_CELLS, N_LATENT)) + moved[condition]).astype(np.float32)
    groups = group_controls(context, None, condition == 0)
    apart = 3 * condition + part
    found = match_controls(groups, method="ot", latent=latent, condition=apart, seed=1)
    ways = [
        float(((latent[matched] - latent)[condition > 0] ** 2).sum(axis=1).mean())
        for matched in (found, match_controls(groups, seed=1))
    ]
    return ways[0], ways[1]


def _kang() -> Iterator[Row]:
    """Yield the energy of `PerturbFlow` on held-out types, beside the recorded table's."""
    adata = load_kang()
    recorded = pd.read_csv(RESULTS / "kang_flow.csv").set_index(list(KEYS))["energy"]
    for cell_type in TYPES:
        found, before = [], []
        for seed in range(N_SEEDS):
            case = hold_out(adata, cell_type, seed)
            cells = sampled_cells(train_model("flow", case, seed), case, {"n_samples": None}, seed)
            found.append(score_cells(case, cells, seed)["energy"])
            before.append(recorded["flow", cell_type, seed])
        change = np.subtract(found, before)
        error = float(change.std(ddof=1) / np.sqrt(N_SEEDS))
        yield Row(
            f"energy of PerturbFlow on Kang, {cell_type}, against groups repeated to 256",
            float(np.mean(found)),
            "",
            f"{np.mean(before):.3f} + 2 x {error:.3f}",
            bool(change.mean() <= 2 * error),
            f"{N_SEEDS} seeds",
        )
