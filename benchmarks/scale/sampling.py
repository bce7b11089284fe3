"""Counts drawn a second, at the default number of evaluations and at equal energy with fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pandas as pd

from benchmarks._parts import RESULTS
from benchmarks._simulated import simulate
from benchmarks.scale import Row
from benchmarks.speed import FEW, SAMPLER, Setting, sampling_seconds, train_ours

if TYPE_CHECKING:
    from collections.abc import Iterator

BAR: Final = 20_000


def rows(*, quick: bool) -> Iterator[Row]:
    """Yield cells a CPU second."""
    setting = Setting(
        n_cells=2_000 if quick else 10_000,
        density=0.05,
        n_epochs=1,
        accelerator="cpu",
    )
    model, _ = train_ours(simulate(setting.n_cells, setting.n_genes, density=0.05), setting)
    for method, n_evaluations in (SAMPLER, FEW):
        seconds = min(sampling_seconds(model, setting, (method, n_evaluations)) for _ in range(3))
        speed = setting.n_cells / seconds
        what = f"counts of {setting.n_genes:,} genes, {n_evaluations} evaluations of {method}"
        bar = f">= {BAR:,}, or the energy of fewer evaluations"
        met = None if quick else speed >= BAR
        yield Row(what, speed, "cells a CPU second", bar, met)
    found = pd.read_csv(RESULTS / "samplers.csv").set_index(["sampler", "evaluations"])
    for data, table in found[found["model"] == "diffusion"].groupby("data"):
        ratio = table.loc[FEW, "energy"] / table.loc[SAMPLER, "energy"]
        what = (
            f"energy of {FEW[1]} evaluations of {FEW[0]} over {SAMPLER[1]} of {SAMPLER[0]}, {data}"
        )
        yield Row(what, ratio, "", "<= 1", bool(ratio <= 1), "by benchmarks.samplers")
