"""What is known of `CausalPerturbVAE`: `python -m benchmarks.causal`.

On simulated screens: whether latent groups, operators, pairs, doses and metadata are recovered, and
how much two models of one screen agree. On Papalexi 2021: which operators are near each other, and
where the replicate goes. On Kang 2018: metadata beside other methods. On MorPhiC: bulk signatures.
Then the terms of the loss, one at a time, on two of these. A run that was interrupted goes on where
it stopped. The Kang rows of cells never seen stimulated are those of
`python -m benchmarks.kang --model causal`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from benchmarks._block_r2 import block_r2
from benchmarks._causal_figure import draw
from benchmarks._causal_real import (
    GROUPS,
    PAPALEXI,
    PATHWAY,
    fitted,
    kang_metadata,
    morphic,
    papalexi,
    pca_effects,
)
from benchmarks._causal_truth import dose_scores, make_dose_screen, make_screen, scores
from benchmarks._results import Results
from benchmarks._tasks import load_papalexi
from scvi_perturb import CausalConfig
from scvi_perturb.benchmark import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import pandas as pd

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
FIGURE: Final = ROOT / "docs" / "_static" / "causal_papalexi.svg"
KEYS: Final = ("part", "setting", "seed", "figure")
SIMULATED: Final = {"context_keys": ["cell_type"], "batch_key": "batch"}
#: Terms of the loss, left out or exchanged one at a time.
SETTINGS: Final[dict[str, CausalConfig]] = {
    "default": CausalConfig(),
    "no independence": CausalConfig(independence="none"),
    "total correlation": CausalConfig(independence="total_correlation"),
    "adversary": CausalConfig(independence="adversary", independence_weight=1.0),
    "no classification": CausalConfig(classification=0.0),
    "no control invariance": CausalConfig(control_invariance=0.0),
    "no shrinkage": CausalConfig(operator_shrinkage=0.0, context_shrinkage=0.0, additivity=0.0),
    "no shrinkage of operators": CausalConfig(operator_shrinkage=0.0),
    "no shrinkage by context": CausalConfig(context_shrinkage=0.0),
    "no additivity": CausalConfig(additivity=0.0),
    "sparse operators": CausalConfig(sparsity=10.0),
    "all respond": CausalConfig(responders=False),
    "mixture prior": CausalConfig(prior="mixture"),
    "flow prior": CausalConfig(prior="flow"),
    "free bits": CausalConfig(free_bits=1.0),
    "no metadata dropout": CausalConfig(metadata_dropout=0.0),
}
#: Figures of the simulated screen that the table of terms has.
ABLATED: Final = (
    "R2 identity", "R2 state", "R2 technical", "largest leak", "operator cosine, genes",
    "pairs, error", "accuracy perturbation",
)  # fmt: skip


def simulator(seed: int) -> dict[str, float]:
    """Return the figures of a simulated screen with pairs, and of one with doses."""
    adata, made = make_screen(seed)
    found = scores(fitted(adata, made, seed, setup=SIMULATED), adata, made, seed)
    adata, made = make_dose_screen(seed)
    model = fitted(adata, made, seed, setup=SIMULATED | {"dose_key": "dose"})
    return found | dose_scores(model, adata, made)


def stability(seed: int) -> dict[str, float]:
    """Return how much two models of one screen agree, of different seeds."""
    adata, made = make_screen(0)
    pair = [fitted(adata, made, s, setup=SIMULATED) for s in (seed, seed + 10)]
    genes = [model.get_perturbation_effects().X for model in pair]
    length = np.linalg.norm(genes[0], axis=1) * np.linalg.norm(genes[1], axis=1)
    latents = [{g: m.get_latent_representation(group=g) for g in GROUPS} for m in pair]
    table = block_r2(latents[0], latents[1])
    cosine = float(((genes[0] * genes[1]).sum(axis=1) / length).mean())
    return {"operator cosine between seeds": cosine} | {
        f"R2 of {g} from {g} of another seed": float(table.loc[g, g]) for g in GROUPS
    }


def ablated(setting: str) -> dict[str, float]:
    """Return figures of two tasks with other weights: a smaller simulated screen, and Papalexi."""
    config = SETTINGS[setting]
    adata, made = make_screen(0, n_cells=4_000, n_genes=500)
    model = fitted(adata, made, 0, setup=SIMULATED, config=config)
    every = scores(model, adata, made, 0)
    found = {f"simulated: {name}": every[name] for name in ABLATED}
    for name, value in papalexi(0, config).items():
        if name.startswith(("operators", "replicate")) and "PCA" not in name:
            found[f"Papalexi: {name}"] = value
    return found


PARTS: Final[dict[str, Callable[[int], dict[str, float]]]] = {
    "simulator": simulator,
    "papalexi": papalexi,
    "kang_metadata": kang_metadata,
    "morphic": morphic,
    "stability": stability,
}
TITLES: Final = {
    "simulator": "Simulated screens: known truth",
    "papalexi": "Papalexi 2021: operators and the replicate",
    "kang_metadata": "Kang 2018: metadata of held-out cells, macro F1",
    "morphic": "MorPhiC: signatures of knock-outs of genes never seen",
    "stability": "One simulated screen, two models",
}


def runs(parts: Sequence[str], seeds: int) -> Iterator[tuple[str, str, int]]:
    """Yield part, setting and seed of everything to be run."""
    for part in parts:
        if part == "ablation":
            yield from ((part, setting, 0) for setting in SETTINGS)
        else:
            yield from ((part, "default", seed) for seed in range(seeds))


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Run what is missing and write the tables."""
    options = _parser().parse_args(arguments)
    results = Results(options.out / "causal.csv", KEYS)
    if options.fresh:
        results.clear()
    for part, setting, seed in runs(options.parts, options.seeds):
        if results.has(part, setting, seed, "done"):
            continue
        found = ablated(setting) if part == "ablation" else PARTS[part](seed)
        for figure, value in (found | {"done": 1.0}).items():
            results.add(
                dict(zip(KEYS, (part, setting, seed, figure), strict=True)) | {"value": value}
            )
            print(f"{part}, {setting}, seed {seed}: {figure} {value:.3f}", flush=True)
    if options.figure:
        draw_papalexi()
    frame = results.frame()
    (options.out / "causal.md").write_text(report(frame), encoding="utf-8")
    return frame


def draw_papalexi() -> None:
    """Draw which knock-outs have like operators, of a model of seed 0."""
    adata = load_papalexi()
    model = fitted(adata, None, 0, setup=PAPALEXI)
    names = sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})
    operators = model.get_perturbation_representation(names)
    draw(operators, pca_effects(adata, names), PATHWAY, FIGURE)


def report(frame: pd.DataFrame) -> str:
    """Return the tables in Markdown."""
    parts = ["# CausalPerturbVAE", "", "Written by `python -m benchmarks.causal`.", ""]
    frame = frame[frame["figure"] != "done"]
    for part, own in frame.groupby("part", sort=False):
        if part == "ablation":
            continue
        rows = [
            [str(figure), _number(values.mean()), _number(values.std()), str(len(values))]
            for figure, values in own.groupby("figure", sort=False)["value"]
        ]
        header = ["figure", "mean", "sd over seeds", "seeds"]
        parts += [f"## {TITLES[str(part)]}", "", markdown_table(header, rows), ""]
    own = frame[frame["part"] == "ablation"]
    if len(own):
        order = [name for name in SETTINGS if name in set(own["setting"])]
        table = own.pivot_table(index="figure", columns="setting", values="value", sort=False)
        rows = [[str(figure), *(_number(row[name]) for name in order)]
                for figure, row in table.iterrows()]  # fmt: skip
        parts += ["## Terms of the loss, seed 0", "", markdown_table(["figure", *order], rows), ""]
    return "\n".join(parts)


def _number(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.causal", description=__doc__)
    every = [*PARTS, "ablation"]
    parser.add_argument("--parts", nargs="+", choices=every, default=every)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--figure", action="store_true", help=f"also draw {FIGURE.name}")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    return parser


if __name__ == "__main__":
    main()
