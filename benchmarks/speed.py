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
from dataclasses import dataclass, replace
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
    from collections.abc import Callable, Sequence

    from anndata import AnnData
    from numpy.typing import NDArray

RESULTS: Final = Path(__file__).resolve().parent / "results"
#: scvi-tools' default, and one that fills a device better.
BATCH_SIZES: Final = (128, 1_024)
#: The default sampler, and one of equal energy (docs/samplers.md) with fewer evaluations.
SAMPLER: Final = ("heun", 20)
FEW: Final = ("dpm++2m", 8)


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
    n_epochs: int = 3
    n_repeats: int = 3
    n_to_file: int = 100_000
    accelerator: str = "auto"

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds of the CPU, which others on the machine change little; on a GPU of the wall."""
        on_gpu = self.accelerator not in {"cpu", "auto"} or torch.cuda.is_available()
        return time.perf_counter if on_gpu and self.accelerator != "cpu" else time.process_time


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
    rows: list[tuple[str, float, str]] = []
    for batch_size in BATCH_SIZES:
        ratios, model = compare(adata, replace(setting, batch_size=batch_size))
        for name, values in ratios.items():
            what = f"{name}, batches of {batch_size:,}: SCVI's time over ours"
            rows.append((what, float(np.median(values)), "times"))
            rows.append((f"{what}, lowest of the repeats", float(values.min()), "times"))
    whole = sampling_seconds(model, setting, SAMPLER)
    few = sampling_seconds(model, setting, FEW)
    rows.append(("sampling counts, 20 evaluations of heun over 8 of dpm++2m", whole / few, "times"))
    with tempfile.TemporaryDirectory() as folder:
        model.save(str(Path(folder) / "model"), save_anndata=True)
        child = run_child(Path(folder) / "model", setting)
    what = f"peak memory above the loaded model, {setting.n_to_file:,} cells to a file"
    rows.append((what, child["peak_mib"], "MiB"))
    return pd.DataFrame(rows, columns=["what", "value", "unit"])


@dataclass(frozen=True, slots=True)
class Run:
    """Seconds of a whole call of `train`, and cells a second of the epochs after the first.

    `second`: Cells a second of stage two, where there is one.
    """

    seconds: float
    speed: float
    second: float = math.nan


def compare(adata: AnnData, setting: Setting) -> tuple[dict[str, NDArray[np.float64]], Any]:
    """Return SCVI's time over ours, one value a repeat, for the call and for stage one; a model.

    Both are trained in turn, so that they meet the same machine.
    """
    found: dict[str, list[float]] = {"whole train()": [], "stage one": []}
    for _ in range(setting.n_repeats):
        theirs = train_scvi(adata.copy(), setting)
        model, ours = train_ours(adata.copy(), setting)
        found["whole train()"].append(theirs.seconds / ours.seconds)
        found["stage one"].append(ours.speed / theirs.speed)
    return {name: np.array(values) for name, values in found.items()}, model


def train_scvi(adata: AnnData, setting: Setting) -> Run:
    """Train scvi-tools' own model."""
    from scvi.model import SCVI

    SCVI.setup_anndata(adata)
    model = SCVI(
        adata,
        n_hidden=setting.n_hidden,
        n_latent=setting.n_latent,
        n_layers=setting.n_layers,
        gene_likelihood="nb",
    )
    timer = EpochTimer(setting.clock)
    start = setting.clock()
    model.train(
        max_epochs=1 + setting.n_epochs,
        train_size=0.9,
        batch_size=setting.batch_size,
        check_val_every_n_epoch=1,
        callbacks=[timer],
        **quiet(setting),
    )
    return Run(setting.clock() - start, timer.cells_per_second())


def train_ours(
    adata: AnnData, setting: Setting, *, precision: str = "32-true", compiled: bool = False
) -> tuple[Any, Run]:
    """Train both stages of our model, stage two in its own batches and for as many epochs.

    Stage two learns from treated cells: an epoch of it is once through those.
    """
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
    timer = EpochTimer(setting.clock)
    n_epochs = 1 + setting.n_epochs
    config = TrainConfig(
        generator_batch_size=max(TrainConfig().generator_batch_size, setting.batch_size),
        early_stopping=False,
        compile=compiled,
    )
    n_treated = 0.9 * float((adata.obs["perturbation"] != "control").sum())
    start = setting.clock()
    model.train(
        n_epochs,
        n_steps=n_epochs * math.ceil(n_treated / config.generator_batch_size),
        batch_size=setting.batch_size,
        seed=0,
        config=config,
        callbacks=[timer],
        precision=precision,
        **quiet(setting),
    )
    seconds = setting.clock() - start
    return model, Run(seconds, timer.cells_per_second(0), timer.cells_per_second(1))


def sampling_seconds(model: Any, setting: Setting, sampler: tuple[str, int]) -> float:  # noqa: ANN401
    """Return the seconds of drawing integer counts of as many cells as are trained on."""
    sample(model, 1_000, sampler=sampler)
    start = setting.clock()
    sample(model, setting.n_cells, sampler=sampler)
    return setting.clock() - start


def sample(
    model: Any,  # noqa: ANN401
    n_samples: int,
    path: Path | None = None,
    *,
    sampler: tuple[str, int] = SAMPLER,
) -> AnnData:
    """Draw cells of one condition."""
    from scvi_perturb.generative import SamplerConfig

    method, n_evaluations = sampler
    chosen = SamplerConfig(method, n_evaluations=n_evaluations)
    return model.sample(["A"], n_samples=n_samples, seed=0, sampler=chosen, path=path)


def memory_of_sampling(model_dir: Path, setting: Setting) -> dict[str, float]:
    """Sample to a file in this process; return what it took above the loaded model."""
    from scvi_perturb.model import PerturbDiffusion

    model = PerturbDiffusion.load(str(model_dir))
    sample(model, 1_000)
    before = reset_peak_memory()
    sample(model, setting.n_to_file, model_dir / "drawn.h5ad")
    return {"peak_mib": peak_memory() - before}


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
        f"{setting.n_latent}; {1 + setting.n_epochs} epochs with validation on a tenth of the "
        f"cells after each, stage one without the first and without validation; median of "
        f"{setting.n_repeats} trainings of either in turn; SCVI with the same likelihood (nb); "
        f"stage two in batches of 256 or more; seconds of the CPU, on a GPU of the wall. "
        f"{device}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; {packages}."
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
