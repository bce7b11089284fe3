"""How long the judge takes: `python -m benchmarks.metrics`.

All metrics of 100 conditions with 500 predicted and 500 real cells of 5,000 genes, a seventh of
the counts non-zero, against 2,000 control cells. What depends on real cells alone is computed once
for all methods and is timed apart.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks._simulated import simulate
from scvi_perturb.benchmark import markdown_table, peak_memory, reset_peak_memory
from scvi_perturb.metrics import (
    METRICS,
    CellPopulation,
    Comparison,
    GroundTruth,
    Space,
    log_normalize,
    score_all,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS: Final = Path(__file__).resolve().parent / "results"
N_CONTROLS: Final = 2_000


def main(arguments: Sequence[str] | None = None) -> dict[str, float]:
    """Measure, print and write the table; return seconds by what was done."""
    options = _parser().parse_args(arguments)
    seconds = measure(options.conditions, options.cells, options.genes)
    text = report(seconds, options.conditions, options.cells, options.genes)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "metrics.md").write_text(text, encoding="utf-8")
    print(text)
    return seconds


def measure(n_conditions: int, n_cells: int, n_genes: int) -> dict[str, float]:
    """Return the seconds of each step."""
    counts = simulate(N_CONTROLS + 2 * n_conditions * n_cells, n_genes, density=1 / 7).X
    control, rest = counts[:N_CONTROLS], counts[N_CONTROLS:]
    real, made = rest[: n_conditions * n_cells], rest[n_conditions * n_cells :]
    parts = [slice(i * n_cells, (i + 1) * n_cells) for i in range(n_conditions)]
    seconds: dict[str, float] = {}
    before, start = reset_peak_memory(), time.perf_counter()

    def lap(name: str) -> None:
        nonlocal start
        seconds[name] = time.perf_counter() - start
        start = time.perf_counter()

    shared = CellPopulation.from_counts(control)
    space = Space.fit(log_normalize(real[:10_000]))
    lap("space, once a task")
    centre = np.zeros(n_genes)
    truths = [
        GroundTruth(
            CellPopulation.from_counts(real[part]), shared, space, name=str(i), centre=centre
        )
        for i, part in enumerate(parts)
    ]
    for truth in truths:
        _ = truth.points, truth.differential
    lap("real cells, once a task")
    cases = [
        Comparison(CellPopulation.from_counts(made[part]), truth)
        for part, truth in zip(parts, truths, strict=True)
    ]
    lap("profiles of predicted cells")
    for name, metric in METRICS.items():
        if metric.needs in ("means", "cells"):
            score_all(cases, [name])
            lap(name)
    seconds["peak memory, MiB"] = peak_memory() - before
    return seconds


def report(seconds: dict[str, float], n_conditions: int, n_cells: int, n_genes: int) -> str:
    """Return the table in Markdown."""
    steps = {name: value for name, value in seconds.items() if not name.startswith("peak")}
    dear = sorted(steps, key=lambda name: -steps[name])
    rows = [[name, f"{steps[name]:.1f}"] for name in dear if steps[name] >= 0.05]
    rest = sum(value for value in steps.values() if value < 0.05)
    rows += [["the others together", f"{rest:.1f}"], ["**all**", f"**{sum(steps.values()):.0f}**"]]
    head = f"{n_conditions} conditions, {n_cells} cells a side, {n_genes:,} genes."
    memory = f"Peak memory above the counts: {seconds['peak memory, MiB']:.0f} MiB."
    table = markdown_table(["step", "seconds"], rows)
    return f"# Speed of the metrics\n\n{head} {memory}\n\n{table}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=__doc__)
    parser.add_argument("--conditions", type=int, default=100)
    parser.add_argument("--cells", type=int, default=500)
    parser.add_argument("--genes", type=int, default=5_000)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser


if __name__ == "__main__":
    main()
