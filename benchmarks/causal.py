"""What is known of `CausalPerturbVAE`: `python -m benchmarks.causal`.

On simulated screens: whether latent groups, operators, combinations, doses and metadata are
recovered. On Papalexi 2021: which operators are near each other, and where the replicate goes. On
Kang 2018: metadata beside other methods, and populations of few reference cells. On MorPhiC: bulk
signatures. Terms of the loss, one at a time. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from benchmarks._causal_truth import dose_scores, make_dose_screen, make_screen, scores
from benchmarks._results import Results
from scvi_perturb import CausalConfig, CausalPerturbVAE
from scvi_perturb.benchmark import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anndata import AnnData

    from scvi_perturb.data import Split

RESULTS: Final = Path(__file__).resolve().parent / "results"
QUIET: Final = {"enable_progress_bar": False}
KEYS: Final = ("part", "setting", "seed", "figure")


def fitted(
    adata: AnnData,
    made: Split | None,
    seed: int,
    *,
    setup: dict[str, Any],
    **init: Any,
) -> CausalPerturbVAE:
    """Return a trained model on a copy of the data."""
    adata = adata.copy()
    CausalPerturbVAE.setup_anndata(adata, **setup)
    model = CausalPerturbVAE(adata, seed=seed, **init)
    model.train(split=made, seed=seed, **QUIET)
    return model


SIMULATED: Final = {"context_keys": ["cell_type"], "batch_key": "batch"}


def simulator(seed: int, setting: CausalConfig | None = None) -> dict[str, float]:
    """Return the figures of a simulated screen, of pairs and of doses."""
    adata, made = make_screen(seed)
    start = time.perf_counter()
    model = fitted(adata, made, seed, setup=SIMULATED, causal=setting)
    seconds = time.perf_counter() - start
    found = scores(model, adata, made, seed)
    if setting is None:
        adata, made = make_dose_screen(seed)
        setup = SIMULATED | {"dose_key": "dose"}
        found |= dose_scores(fitted(adata, made, seed, setup=setup), adata, made)
        found["training, s"] = seconds
    return found


def stability(seed: int) -> dict[str, float]:
    """Return how much two models of one screen agree, of different seeds."""
    adata, made = make_screen(0)
    pair = [fitted(adata, made, s, setup=SIMULATED) for s in (seed, seed + 10)]
    genes = [model.get_perturbation_effects().X for model in pair]
    cosine = (genes[0] * genes[1]).sum(1) / np.prod([np.linalg.norm(g, axis=1) for g in genes], 0)
    from scvi_perturb.metrics import block_r2

    latents = [{g: m.get_latent_representation(group=g) for g in GROUPS} for m in pair]
    table = block_r2(latents[0], latents[1])
    return {"operator cosine between seeds": float(cosine.mean())} | {
        f"R2 {g} between seeds": float(table.loc[g, g]) for g in GROUPS
    }


GROUPS: Final = ("identity", "state", "technical")
PARTS: Final[dict[str, Callable[[int], dict[str, float]]]] = {
    "simulator": simulator,
    "stability": stability,
}


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Run what is missing and write the tables."""
    options = _parser().parse_args(arguments)
    results = Results(options.out / "causal.csv", KEYS)
    if options.fresh:
        results.clear()
    for part in options.parts:
        for seed in range(options.seeds):
            if results.has(part, "default", seed, "done"):
                continue
            for figure, value in (PARTS[part](seed) | {"done": 1.0}).items():
                results.add(dict(zip(KEYS, (part, "default", seed, figure), strict=True))
                            | {"value": value})  # fmt: skip
                print(f"{part}, seed {seed}: {figure} {value:.3f}", flush=True)
    frame = results.frame()
    (options.out / "causal.md").write_text(report(frame), encoding="utf-8")
    return frame


def report(frame: pd.DataFrame) -> str:
    """Return the tables in Markdown."""
    parts = ["# CausalPerturbVAE", ""]
    for part, own in frame[frame["figure"] != "done"].groupby("part", sort=False):
        table = own.groupby("figure", sort=False)["value"].agg(["mean", "std", "count"])
        rows = [[str(f), f"{r['mean']:.3f}", f"{r['std']:.3f}", f"{r['count']:.0f}"]
                for f, r in table.iterrows()]  # fmt: skip
        parts += [f"## {part}", "", markdown_table(["figure", "mean", "sd", "seeds"], rows), ""]
    return "\n".join(parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causal", description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    return parser


if __name__ == "__main__":
    main()
