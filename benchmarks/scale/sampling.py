"""Counts drawn a second, at the default number of evaluations and at equal energy with fewer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

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
        met = None if quick else speed >= BAR
        yield Row(what, speed, "cells a CPU second", f">= {BAR:,}", met)
