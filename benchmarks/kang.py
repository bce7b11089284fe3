"""Cells of a cell type that was never seen stimulated: `python -m benchmarks.kang`.

Each of seven cell types of Kang 2018 is held out in turn; the model's sampled counts are scored
beside no change, shifted control cells and a replicate of the experiment. The frame is described
in `_kang_frame.py`. A run that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd
from sklearn.utils.sparsefuncs import mean_variance_axis

from benchmarks._kang_frame import (
    CONTEXT_KEYS,
    CONTROL,
    STIMULATED,
    Case,
    cell_types,
    hold_out,
    load_kang,
    score_cells,
    score_replicate,
    split_without,
)
from benchmarks._results import Results
from scvi_perturb import FlowConfig
from scvi_perturb.benchmark import markdown_table
from scvi_perturb.data import ScreenKeys
from scvi_perturb.metrics import METRICS, log_normalize
from scvi_perturb.predictors import NoChange, ShiftedControl

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scvi_perturb.metrics import Matrix
    from scvi_perturb.model.base.model import PerturbationModel

#: Models by the name on the command line: a class of `scvi_perturb.model`, and what is chosen.
MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "diffusion": ("PerturbDiffusion", {}),
    "hybrid": ("HybridResidualModel", {}),
    "flow": ("PerturbFlow", {}),
    "flow-noise": ("PerturbFlow", {"flow": FlowConfig(source="noise")}),
    "flow-splines": ("PerturbFlow", {"flow": FlowConfig(source="noise", kind="coupling")}),
    "flow-random": ("PerturbFlow", {"flow": FlowConfig(coupling="random")}),
    "flow-unbalanced": ("PerturbFlow", {"flow": FlowConfig(coupling="unbalanced")}),
    "flow-single-pairs": ("PerturbFlow", {"flow": FlowConfig(n_neighbours=1)}),
    "flow-no-null": ("PerturbFlow", {"flow": FlowConfig(null_fraction=0.0)}),
    "causal": ("CausalPerturbVAE", {}),
    "diffusion-log1p": ("PerturbDiffusion", {"space": "log1p"}),
    "diffusion-counts": ("PerturbDiffusion", {"space": "counts"}),
}
#: What is asked of a trained model: row of the table and arguments of `sample`.
VARIANTS: Final[dict[str, dict[str, Any]]] = {
    "": {"n_samples": None},
    ", library predicted": {"n_samples": None, "library_size": "predicted"},
    ", 1,000 cells": {"n_samples": 1_000},
    ", library predicted, 1,000 cells": {"n_samples": 1_000, "library_size": "predicted"},
}
#: What is asked of some models besides: the population that so many control cells stand for.
FURTHER: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "causal": {
        ", state kept": {"n_samples": None, "conditioning": ("identity", "state", "technical")},
        ", transfer from one cell": {"n_samples": 500, "n_reference": 1},
        ", transfer from ten cells": {"n_samples": 500, "n_reference": 10},
        ", transfer from all cells": {"n_samples": 500, "n_reference": None},
    }
}
#: Genes of a diffusion of counts.
MAX_COUNT_GENES: Final = 2_000
KEYS: Final = ("method", "cell_type", "seed")
RESULTS: Final = Path(__file__).resolve().parent / "results"
NOTES: Final = """\
Each of the seven cell types is held out in turn (its stimulated cells); mean over types, and the
standard deviation over seeds of that mean. Cells are log1p(counts per 10,000), profiles means over
cells, changes against the held-out type's own control cells. Pearson: correlation of predicted and
true change, all genes and the 100 with the largest true change (undefined for no change). nmse:
squared error over squared true effect, sampling variances subtracted; emitting the *measured*
controls scores slightly above 1, by their sampling noise. nmse / no change: the same error over
that of emitting the measured controls, exactly 1 for these. energy: energy distance, U-statistic,
unsquared norm, 50 components fitted on training cells, at most 500 cells a side. variance ratio:
predicted over true variance between cells, median over the 100 genes. zero error: mean over genes
of |difference of zero fractions|. Shifted control: control cells plus the mean change of the other
types in log space, clipped at 0. Replicate: a random half of the held-out cells predicts the other
half; of its own sampling variance nothing is subtracted, as for any prediction, so its nmse is the
error of half an experiment and not 0. The model samples one cell for each control cell, at the
control cell's library size; `library predicted`: at that times the mean change of library size
under the perturbation in the other types; `1,000 cells`: as many cells, so that less of the nmse
is the sampling noise of the prediction itself; and both together. A diffusion of counts models the
2,000 most variable genes of the training cells; the others are the control cell's. `state kept`:
the control cell's own basal state is moved, in place of one drawn from the prior; `transfer`: the
population that one random control cell, ten, or all stand for."""


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Run what is missing, write a table of all results and print that of what was asked."""
    options = _parser().parse_args(arguments)
    results = Results(options.out / f"kang_{options.model}.csv", KEYS)
    if options.fresh:
        results.clear()
    adata = load_kang()
    types = options.types or cell_types(adata)
    for cell_type in types:
        for seed in range(options.seeds):
            run(adata, cell_type, seed, model=options.model, results=results)
    frame = results.frame()
    chosen = frame["cell_type"].isin(types) & (frame["seed"] < options.seeds)
    (options.out / f"kang_{options.model}.md").write_text(report(frame), encoding="utf-8")
    print(report(frame[chosen]))
    return frame[chosen]


def run(adata: AnnData, cell_type: str, seed: int, *, model: str, results: Results) -> None:
    """Score every method that the results do not yet hold for this type and seed."""
    variants = _variants(model)
    own = [f"{model}{variant}" for variant in variants] if model != "none" else []
    methods = ["no change", "shifted control", *own, "replicate"]
    missing = [method for method in methods if not results.has(method, cell_type, seed)]
    if not missing:
        return
    case = hold_out(adata, cell_type, seed)
    trained = None
    if set(missing) & set(own):
        start = time.perf_counter()
        trained = train_model(model, case, seed)
        print(f"{cell_type}, seed {seed}: trained in {time.perf_counter() - start:.0f} s")
    for method in missing:
        start = time.perf_counter()
        if method == "replicate":
            scores = score_replicate(case, seed)
        else:
            cells = (
                sampled_cells(trained, case, variants[method.removeprefix(model)], seed)
                if method in own
                else predicted_cells(method, case)
            )
            scores = score_cells(case, cells, seed)
        seconds = time.perf_counter() - start
        results.add(dict(zip(KEYS, (method, cell_type, seed), strict=True)) | scores
                    | {"seconds": round(seconds, 2)})  # fmt: skip
        numbers = "  ".join(f"{name} {value:.3f}" for name, value in scores.items())
        print(f"{cell_type}, seed {seed}, {method} ({seconds:.0f} s): {numbers}", flush=True)


def predicted_cells(method: str, case: Case) -> Matrix:
    """Return cells of a trivial predictor, log-normalised, one for each control cell."""
    means = {"no change": NoChange(profile="cell_mean"), "shifted control": None}
    predictor = ShiftedControl(means[method])
    predictor.fit(case.screen, case.split, keys=ScreenKeys(context=CONTEXT_KEYS))
    return predictor.sample(request(case), reference=case.reference).X


def train_model(name: str, case: Case, seed: int) -> PerturbationModel:
    """Train a model on what may be seen."""
    from scvi_perturb import model as models

    class_name, chosen = MODELS[name]
    cls = getattr(models, class_name)
    adata = case.screen[:, _modelled(name, case)].copy()
    cls.setup_anndata(
        adata,
        perturbation_key="perturbation",
        control=CONTROL,
        context_keys=list(CONTEXT_KEYS),
    )
    model = cls(adata, seed=seed, **chosen)
    made = case.split
    if adata.n_vars < case.screen.n_vars:  # the same cells, of a screen with fewer genes
        made = split_without(adata, case.cell_type, made.seed)
    model.train(split=made, seed=seed, enable_progress_bar=False)
    return model


def sampled_cells(
    model: PerturbationModel | None, case: Case, variant: dict[str, Any], seed: int
) -> Matrix:
    """Return cells that a trained model samples, log-normalised."""
    if model is None:
        msg = "There is no trained model to sample from."
        raise ValueError(msg)
    variant = dict(variant)
    if "n_reference" in variant:
        n, few = variant.pop("n_reference"), case.reference
        if n is not None:
            few = few[np.random.default_rng(seed).choice(few.n_obs, n, replace=False)].copy()
        return log_normalize(model.transfer(few, request(case), seed=seed, **variant).X)
    cells = model.sample(request(case), reference=case.reference, seed=seed, **variant)
    genes = cells.var_names
    if cells.uns["scvi_perturb"]["units"] != "counts":  # log-normalised already, and unbounded
        return np.maximum(cells.X, 0.0)
    if len(genes) == case.screen.n_vars:
        return log_normalize(cells.X)
    # Of genes that the model does not know, those of the control cell that each starts from.
    start = case.reference.obs_names.get_indexer(cells.obs["reference_cell"])
    counts = case.reference.X[start].toarray()
    counts[:, case.screen.var_names.get_indexer(genes)] = cells.X.toarray()
    return log_normalize(counts)


def _variants(model: str) -> dict[str, dict[str, Any]]:
    """Return what is asked of a model; one of counts draws its own library sizes."""
    asked = VARIANTS | FURTHER.get(model, {})
    if model == "none" or MODELS[model][1].get("space") != "counts":
        return asked
    return {name: chosen for name, chosen in asked.items() if "library_size" not in chosen}


def _modelled(name: str, case: Case) -> np.ndarray:
    """Return the genes that a model is given: all, or the most variable ones of the training cells.

    A diffusion of counts is for 2,000 genes at most.
    """
    if MODELS[name][1].get("space") != "counts":
        return np.arange(case.screen.n_vars)
    variances = mean_variance_axis(log_normalize(case.screen.X[case.split.train]), axis=0)[1]
    return np.sort(np.argsort(-variances)[:MAX_COUNT_GENES])


def request(case: Case) -> pd.DataFrame:
    """Return the held-out condition as a table of one row."""
    return pd.DataFrame({"perturbation": [STIMULATED], "cell_type": [case.cell_type]})


def report(frame: pd.DataFrame) -> str:
    """Return the tables and their notes in Markdown."""
    methods = list(dict.fromkeys(["no change", "shifted control", *frame["method"]]))
    methods.sort(key=lambda method: method == "replicate")
    metrics = [name for name in METRICS if name in frame]
    seeds = frame.groupby(["method", "seed"])[metrics].mean()
    means, spread = (getattr(seeds.groupby("method"), f)() for f in ("mean", "std"))
    header = ["method", *(METRICS[name].title for name in metrics)]
    overall = [[m, *(_number(means.loc[m, c], spread.loc[m, c]) for c in metrics)] for m in methods]
    parts = ["# Kang 2018, unseen cell type", "", markdown_table(header, overall), ""]
    by_type = frame.groupby(["method", "cell_type"])[metrics].mean()
    for method in methods:
        rows = by_type.loc[method]
        cells = [[str(t), *(_number(rows.loc[t, c]) for c in metrics)] for t in rows.index]
        parts += [f"## {method}", "", markdown_table(["held out", *header[1:]], cells), ""]
    n_types, n_seeds = frame["cell_type"].nunique(), frame["seed"].nunique()
    return "\n".join([*parts, f"Cell types: {n_types}; seeds: {n_seeds}. {NOTES}", ""])


def _number(value: float, spread: float | None = None) -> str:
    if np.isnan(value):
        return "-"
    text = f"{value:.3f}" if abs(value) < 3 else f"{value:.2f}"
    return text if spread is None or not spread >= 5e-4 else f"{text} ± {spread:.3f}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kang", description=__doc__)
    parser.add_argument("--model", choices=[*MODELS, "none"], default="diffusion")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--types", nargs="+", help="cell types to hold out (default: all seven)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    return parser


if __name__ == "__main__":
    main()
