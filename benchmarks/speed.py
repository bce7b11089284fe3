"""Speed and memory: `python -m benchmarks.speed`.

Training of `PerturbDiffusion` beside `scvi.model.SCVI` with the same layers on the same simulated
counts, then sampling of integer counts, then the memory that sampling to a file takes.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
import torch

from benchmarks._simulated import simulate
from benchmarks._timing import EpochTimer
from scvi_perturb.benchmark import markdown_table, peak_memory, reset_peak_memory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

RESULTS: Final = Path(__file__).resolve().parent / "results"
N_EVALUATIONS: Final = 20


@dataclass(frozen=True, slots=True)
class Setting:
    """What is trained on what."""

    n_cells: int = 20_000
    n_genes: int = 2_000
    density: float = 0.1
    n_hidden: int = 128
    n_layers: int = 1
    n_latent: int = 32
    batch_size: int = 1_024
    n_epochs: int = 5
    n_repeats: int = 5
    n_to_file: int = 100_000
    accelerator: str = "auto"


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Measure, print and write the table."""
    options = vars(_parser().parse_args(arguments))
    out, model_dir = options.pop("out"), options.pop("sample_to_file")
    setting = Setting(**options)
    if model_dir is not None:
        print(json.dumps(memory_of_sampling(Path(model_dir), setting)))
        return pd.DataFrame()
    frame = measure(setting)
    out.mkdir(parents=True, exist_ok=True)
    frame.to_csv(out / "speed.csv", index=False, float_format="%.6g")
    text = report(frame, setting)
    (out / "speed.md").write_text(text, encoding="utf-8")
    print(text)
    return frame


def measure(setting: Setting) -> pd.DataFrame:
    """Return one row a measurement: `what`, `value`, `unit`."""
    adata = simulate(setting.n_cells, setting.n_genes, density=setting.density)
    scvi_speeds, ours, generator = [], [], []
    for _ in range(setting.n_repeats):  # in turn, so that both meet the same machine
        scvi_speeds.append(train_scvi(adata.copy(), setting))
        model, timer = train_ours(adata, setting)
        ours.append(timer.cells_per_second(0))
        generator.append(timer.cells_per_second(1))
    ratios = np.divide(ours, scvi_speeds)
    rows = [
        ("training, scvi.model.SCVI", np.median(scvi_speeds), "cells/s"),
        ("training, PerturbDiffusion, representation", np.median(ours), "cells/s"),
        ("representation over SCVI", np.median(ratios), "times"),
        ("the same, lowest and", ratios.min(), "times"),
        ("highest of the repeats", ratios.max(), "times"),
        ("training, PerturbDiffusion, generator", np.median(generator), "cells/s"),
        (
            f"sampling counts, {N_EVALUATIONS} evaluations",
            sampling_speed(model, setting),
            "cells/s",
        ),
    ]
    with tempfile.TemporaryDirectory() as folder:
        model.save(str(Path(folder) / "model"), save_anndata=True)
        child = run_child(Path(folder) / "model", setting)
    n = f"{setting.n_to_file:,} cells to a file"
    rows += [
        (f"peak memory above the loaded model, {n}", child["peak_mib"], "MiB"),
        (f"sampling {n}", child["cells_per_second"], "cells/s"),
    ]
    return pd.DataFrame(rows, columns=["what", "value", "unit"])


def train_scvi(adata: AnnData, setting: Setting) -> float:
    """Return the training speed of scvi-tools' own model, in cells per second."""
    from scvi.model import SCVI

    SCVI.setup_anndata(adata)
    model = SCVI(
        adata,
        n_hidden=setting.n_hidden,
        n_latent=setting.n_latent,
        n_layers=setting.n_layers,
        gene_likelihood="nb",
    )
    timer = EpochTimer()
    model.train(
        max_epochs=1 + setting.n_epochs,
        train_size=1.0,
        batch_size=setting.batch_size,
        callbacks=[timer],
        **quiet(setting),
    )
    return timer.cells_per_second()


def train_ours(adata: AnnData, setting: Setting) -> tuple[Any, EpochTimer]:
    """Train both stages of our model; return it and the timer, with one run for each stage."""
    from scvi_perturb.model import PerturbDiffusion
    from scvi_perturb.train import TrainConfig

    PerturbDiffusion.setup_anndata(
        adata, perturbation_key="perturbation", control="control", context_keys=["cell_type"]
    )
    model = PerturbDiffusion(
        adata,
        n_hidden=setting.n_hidden,
        n_layers=setting.n_layers,
        n_latent=setting.n_latent,
        seed=0,
    )
    timer = EpochTimer()
    n_epochs = 1 + setting.n_epochs
    model.train(
        n_epochs,
        n_steps=n_epochs * math.ceil(setting.n_cells / setting.batch_size),
        batch_size=setting.batch_size,
        seed=0,
        config=TrainConfig(generator_batch_size=setting.batch_size, early_stopping=False),
        callbacks=[timer],
        **quiet(setting),
    )
    return model, timer


def sampling_speed(model: Any, setting: Setting) -> float:  # noqa: ANN401
    """Return cells of integer counts per second, at a fixed number of network evaluations."""
    sample(model, 1_000)
    start = time.perf_counter()
    drawn = sample(model, setting.n_cells)
    return drawn.n_obs / (time.perf_counter() - start)


def sample(model: Any, n_samples: int, path: Path | None = None) -> AnnData:  # noqa: ANN401
    """Draw cells of one condition."""
    from scvi_perturb.generative import SamplerConfig

    sampler = SamplerConfig(n_evaluations=N_EVALUATIONS)
    return model.sample(["A"], n_samples=n_samples, seed=0, sampler=sampler, path=path)


def memory_of_sampling(model_dir: Path, setting: Setting) -> dict[str, float]:
    """Sample to a file in this process; return what it took above the loaded model."""
    from scvi_perturb.model import PerturbDiffusion

    model = PerturbDiffusion.load(str(model_dir))
    sample(model, 1_000)
    before = reset_peak_memory()
    start = time.perf_counter()
    drawn = sample(model, setting.n_to_file, model_dir / "drawn.h5ad")
    seconds = time.perf_counter() - start
    return {"peak_mib": peak_memory() - before, "cells_per_second": drawn.n_obs / seconds}


def run_child(model_dir: Path, setting: Setting) -> dict[str, float]:
    """Run `memory_of_sampling` in a process of its own, so that training leaves no trace."""
    command = [sys.executable, "-m", "benchmarks.speed", "--sample-to-file", str(model_dir)]
    command += ["--n-to-file", str(setting.n_to_file), "--accelerator", setting.accelerator]
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        msg = f"Sampling to a file failed:\n{done.stderr}"
        raise RuntimeError(msg)
    return json.loads(done.stdout.splitlines()[-1])


def quiet(setting: Setting) -> dict[str, Any]:
    """Return arguments of Lightning's Trainer: nothing but training."""
    return {
        "accelerator": setting.accelerator,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "logger": False,
    }


def report(frame: pd.DataFrame, setting: Setting) -> str:
    """Return the table and its setting in Markdown."""
    rows = [
        [str(what), f"{value:,.2f}" if value < 10 else f"{value:,.0f}", str(unit)]
        for what, value, unit in zip(frame["what"], frame["value"], frame["unit"], strict=True)
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    packages = ", ".join(f"{name} {version(name)}" for name in ("scvi-tools", "torch"))
    note = (
        f"{setting.n_cells:,} cells x {setting.n_genes:,} genes, simulated, {setting.density:.0%} "
        f"non-zero; {setting.n_layers} hidden layer of {setting.n_hidden}, latent "
        f"{setting.n_latent}, batches of {setting.batch_size:,}; mean of {setting.n_epochs} epochs "
        f"after one to warm up, median of {setting.n_repeats} trainings of either in turn; SCVI "
        f"with the same likelihood (nb). {device}, {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} threads; {packages}."
    )
    return f"# Speed\n\n{markdown_table(['', 'value', 'unit'], rows)}\n\n{note}\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description=__doc__)
    default = Setting()
    for name in ("n_cells", "n_genes", "n_epochs", "n_repeats", "n_to_file"):
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=int, default=getattr(default, name))
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--sample-to-file", metavar="MODEL", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    main()
