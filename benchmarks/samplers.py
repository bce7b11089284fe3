"""Samplers and solvers by their number of network evaluations: `python -m benchmarks.samplers`.

A diffusion and flows are trained once on a simulated screen and on Kang 2018; then latents are
drawn by every sampler with ever more evaluations, and compared with those of real cells of the
same conditions. Written to `docs/samplers.md` and `docs/_static/samplers.svg`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch

from benchmarks._kang_frame import CONTEXT_KEYS, CONTROL, load_kang
from scvi_perturb import PerturbDiffusion, PerturbFlow, SamplerConfig
from scvi_perturb._core import Key, generator
from scvi_perturb.benchmark import markdown_table
from scvi_perturb.data import SimulatorConfig, simulate_screen
from scvi_perturb.model.latent.fit import latent_energy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "samplers.md"
FIGURE: Final = ROOT / "docs" / "_static" / "samplers.svg"
EVALUATIONS: Final = (4, 8, 12, 20, 40, 100, 200)
N_CELLS: Final = 400
MODELS: Final[dict[str, tuple[Any, dict[str, Any]]]] = {
    "diffusion": (PerturbDiffusion, {}),
    "flow from control": (PerturbFlow, {}),
}
HEAD: Final = Path(__file__).with_name("_samplers_head.md")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, draw, write the page and the figure."""
    options = _parser().parse_args(arguments)
    frames = []
    for data, (adata, setup) in _screens().items():
        for name, (cls, given) in MODELS.items():
            start = time.perf_counter()
            cells = adata.copy()
            cls.setup_anndata(cells, **setup)
            model = cls(cells, seed=0, **given)
            model.train(seed=0, enable_progress_bar=False)
            print(f"{data}, {name}: trained in {time.perf_counter() - start:.0f} s", flush=True)
            frames.append(sweep(model).assign(data=data, model=name))
            print(frames[-1].round(3).to_string(), flush=True)
    table = pd.concat(frames, ignore_index=True)
    table.to_csv(options.out, index=False)
    FIGURE.parent.mkdir(exist_ok=True)
    draw(table)
    PAGE.write_text(report(table), encoding="utf-8")


def _screens() -> dict[str, tuple[AnnData, dict[str, Any]]]:
    config = SimulatorConfig(n_perturbations=5, n_combinations=2, n_contexts=2)
    simulated = simulate_screen(n_cells=6_000, n_genes=500, config=config, seed=0)
    kang = {"control": CONTROL, "context_keys": list(CONTEXT_KEYS)}
    return {
        "simulated": (simulated, {"context_keys": ["cell_type"], "batch_key": "batch"}),
        "Kang": (load_kang(), kang),
    }


def sweep(model: Any) -> pd.DataFrame:  # noqa: ANN401
    """Return the scores of every sampler of a model and number of evaluations."""
    groups = _groups(model)
    scale = model.module.generator.latent_scale
    rows = []
    for method in model._samplers:
        finest = [_draw(model, group, SamplerConfig(method, 400)) for group in groups]
        for n in EVALUATIONS:
            start = time.perf_counter()
            drawn = [_draw(model, group, SamplerConfig(method, n)) for group in groups]
            seconds = time.perf_counter() - start
            energy, variance, missed = [], [], []
            for points, fine, (_, _, real) in zip(drawn, finest, groups, strict=True):
                energy.append(latent_energy(points / scale, real / scale))
                variance.append(float((points / scale).var(0).sum() / (real / scale).var(0).sum()))
                missed.append(float(((points - fine) / scale).square().mean().sqrt()))
            rows.append(
                {
                    "sampler": method,
                    "evaluations": n,
                    "energy": np.mean(energy),
                    "variance": np.mean(variance),
                    "step error": np.nan if method == "euler-maruyama" else np.mean(missed),
                    "ms a cell": 1e3 * seconds / sum(len(points) for points in drawn),
                }
            )
    return pd.DataFrame(rows)


def _groups(model: Any) -> list[tuple[np.ndarray, torch.Tensor, torch.Tensor]]:  # noqa: ANN401
    """Return code, references and real latents of the largest groups of treated cells."""
    reader = model._reader(None)
    latent = torch.from_numpy(model.get_latent_representation())
    pairs = np.stack([reader.codes[Key.CONDITION], reader.codes[Key.CONTEXT]], axis=1)
    found, inverse, size = np.unique(pairs, axis=0, return_inverse=True, return_counts=True)
    order = [i for i in np.argsort(-size, kind="stable") if found[i, 0] != 0 and size[i] >= 50]
    random = np.random.default_rng(0)
    groups = []
    for i in order[:12]:
        control = np.flatnonzero((pairs == [0, found[i, 1]]).all(axis=1))
        start = latent[random.choice(control, N_CELLS)]
        groups.append((found[i], start, latent[np.flatnonzero(inverse == i)]))
    return groups


def _draw(model: Any, group: tuple[np.ndarray, torch.Tensor, torch.Tensor],  # noqa: ANN401
          sampler: SamplerConfig) -> torch.Tensor:  # fmt: skip
    (code, context), start, _ = group
    condition = model._screen.table.conditions[code]
    return model._draw_latents(
        model._vocabulary.tensors([condition], model._seen()),
        torch.zeros(len(start), dtype=torch.long),
        start,
        torch.full((len(start),), int(context)),
        sampler=sampler,
        random=generator(0),
    )


def draw(table: pd.DataFrame) -> None:
    """Draw energy and variance against evaluations."""
    kinds = [(d, m) for d in table["data"].unique() for m in MODELS]
    figure, axes = plt.subplots(2, len(kinds), figsize=(3 * len(kinds), 5.2), sharex=True)
    for column, (data, model) in enumerate(kinds):
        own = table[(table["data"] == data) & (table["model"] == model)]
        for method, line in own.groupby("sampler", sort=False):
            for row, value in enumerate(("energy", "variance")):
                axes[row, column].plot(line["evaluations"], line[value], "o-", ms=3, label=method)
        axes[0, column].set(title=f"{data}: {model}", xscale="log", yscale="log")
        axes[1, column].axhline(1, color="grey", lw=0.8)
        axes[1, column].set(xlabel="evaluations", ylim=(0.4, 1.2))
        axes[0, column].legend(fontsize=7, frameon=False)
    axes[0, 0].set_ylabel("energy distance")
    axes[1, 0].set_ylabel("variance ratio")
    figure.tight_layout()
    figure.savefig(FIGURE, metadata={"Date": None})


def report(table: pd.DataFrame) -> str:
    """Return the page."""
    parts = [HEAD.read_text(encoding="utf-8")]
    for (data, model), own in table.groupby(["data", "model"], sort=False):
        parts += [f"## {data}: {model}", ""]
        header = ["sampler", "value", *map(str, EVALUATIONS)]
        rows = []
        for method, line in own.groupby("sampler", sort=False):
            for value in ("energy", "variance", "step error"):
                if line[value].notna().all():
                    numbers = [f"{v:.3f}" for v in line[value]]
                    rows.append([f"`{method}`", value, *numbers])
        parts += [markdown_table(header, rows), ""]
    return "\n".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.samplers", description=__doc__)
    out = ROOT / "benchmarks" / "results" / "samplers.csv"
    parser.add_argument("--out", type=Path, default=out, help="table of all results")
    return parser


if __name__ == "__main__":
    main()
