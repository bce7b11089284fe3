"""A GPU used to its limit, in under five minutes: `python -m benchmarks.gpu`.

Cells a second of both stages and of sampling, memory, and the share of what matrix products allow,
in several batch sizes and precisions, beside SCVI at its default and at a large batch. On a machine
without a GPU the same code runs on the CPU at a small size: its figures say nothing of a GPU.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pandas as pd
import torch

from benchmarks._simulated import simulate
from benchmarks.speed import FEW, SAMPLER, Setting, sampling_seconds, train_ours, train_scvi
from scvi_perturb.benchmark import markdown_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESULTS: Final = Path(__file__).resolve().parent / "results"
#: Batch size, precision and whether modules are compiled.
WAYS: Final = (
    (128, "32-true", False),
    (1_024, "32-true", False),
    (8_192, "32-true", False),
    (8_192, "bf16-mixed", False),
    (8_192, "bf16-mixed", True),
)


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print, and write the table of a GPU."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    out = parser.parse_args(arguments).out
    has_gpu = torch.cuda.is_available()
    rows = []
    for row in measure(has_gpu=has_gpu):
        print(" | ".join(map(str, row)), flush=True)
        rows.append(row)
    frame = pd.DataFrame(rows, columns=["what", "value", "unit"])
    name = torch.cuda.get_device_name() if has_gpu else "CPU: a check of the code, no figure"
    table = markdown_table([*frame], [[what, f"{v:,.3g}", unit] for what, v, unit in rows])
    text = f"# GPU\n\n{table}\n\n{name}, torch {torch.__version__}.\n"
    if has_gpu:
        out.mkdir(parents=True, exist_ok=True)
        (out / "gpu.md").write_text(text, encoding="utf-8")
    print(text)
    return frame


def measure(*, has_gpu: bool) -> Iterator[tuple[str, float, str]]:
    """Yield what was measured, its value and unit."""
    setting = Setting(
        n_cells=200_000 if has_gpu else 600,
        n_genes=2_000 if has_gpu else 100,
        density=0.05 if has_gpu else 0.2,
        n_epochs=2 if has_gpu else 1,
        accelerator="gpu" if has_gpu else "cpu",
    )
    adata = simulate(setting.n_cells, setting.n_genes, density=setting.density)
    ways = WAYS if has_gpu else tuple((min(b, 256), *rest) for b, *rest in WAYS[1:4])
    for batch_size in sorted({ways[0][0], ways[-1][0]}):
        theirs = train_scvi(adata.copy(), replace(setting, batch_size=batch_size))
        yield f"SCVI, batch {batch_size:,}", theirs.speed, "cells/s"
    peak = peak_flops(setting)
    yield "matrix products alone, single precision", peak / 1e12, "TFLOP/s"
    for batch_size, precision, compiled in ways:
        own = replace(setting, batch_size=batch_size)
        name = f"batch {batch_size:,}, {precision}{', compiled' if compiled else ''}"
        yield from _trained(adata, own, name, peak, precision=precision, compiled=compiled)


def _trained(
    adata: Any,  # noqa: ANN401
    setting: Setting,
    name: str,
    peak: float,
    *,
    precision: str,
    compiled: bool,
) -> Iterator[tuple[str, float, str]]:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    model, run = train_ours(adata.copy(), setting, precision=precision, compiled=compiled)
    yield f"stage one, {name}", run.speed, "cells/s"
    yield f"stage two, {name}", run.second, "cells/s"
    yield f"whole train(), {name}", run.seconds, "s"
    share = run.speed * flops_of_a_cell(setting) / peak
    yield f"share of single precision's limit, {name}", share, "of 1"
    if torch.cuda.is_available():
        yield f"peak memory, {name}", torch.cuda.max_memory_allocated() / 2**30, "GiB"
    for sampler in (SAMPLER, FEW):
        seconds = sampling_seconds(model, setting, sampler)
        what = f"sampling, {sampler[1]} evaluations of {sampler[0]}, {name}"
        yield what, setting.n_cells / seconds, "cells/s"


def flops_of_a_cell(setting: Setting) -> float:
    """Return the operations of stage one's matrix products a cell, there and back."""
    genes, hidden, latent = setting.n_genes, setting.n_hidden, setting.n_latent
    encoder = 2 * genes * hidden + 3 * 2 * hidden * latent  # of the input no gradient is needed
    return 2.0 * (encoder + 3 * (latent * hidden + hidden * genes))


def peak_flops(setting: Setting) -> float:
    """Return the operations a second of a large product in the shape of the decoder's."""
    device = "cuda" if setting.accelerator == "gpu" else "cpu"
    rows = 65_536 if device == "cuda" else 1_024
    left = torch.randn(rows, setting.n_hidden, device=device)
    right = torch.randn(setting.n_hidden, setting.n_genes, device=device)
    for n_repeats in (3, 20):  # the first to warm up
        start = time.perf_counter()
        for _ in range(n_repeats):
            product = left @ right
        float(product[0, 0])  # waits for the device
        seconds = time.perf_counter() - start
    return 2.0 * n_repeats * rows * setting.n_hidden * setting.n_genes / seconds


if __name__ == "__main__":
    main()
