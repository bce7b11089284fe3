"""The reference points of unseen drugs and genes: `python -m benchmarks.reference_points`.

Kernel ridge and the mean of training on the mean-only tasks of the leaderboard, nine seeds of five
folds (with three, discrimination on the 54 genes of MorPhiC varies by 0.02 with the folds); the
figures are means over folds, as the reference points were measured, and not over conditions as on
the leaderboard.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from benchmarks._tasks import tasks
from scvi_perturb.benchmark import TRIVIAL, Study, markdown_table, run
from scvi_perturb.features import PerturbationFeatures, molecular_fingerprints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scvi_perturb.benchmark import Task

RESULTS: Final = Path(__file__).resolve().parent / "results"
METHODS: Final = ("context_mean", "kernel_ridge")
#: Measured with other code on the same data and definitions.
REFERENCE: Final = {
    ("lincs_unseen_drug", "context_mean", "nmse"): 0.929,
    ("lincs_unseen_drug", "kernel_ridge", "nmse"): 0.842,
    ("lincs_unseen_drug", "kernel_ridge", "cosine_delta"): 0.134,
    ("lincs_unseen_drug", "kernel_ridge", "discrimination_centred"): 0.62,
    ("morphic_unseen_gene", "kernel_ridge", "nmse"): 1.01,
    ("morphic_unseen_gene", "kernel_ridge", "discrimination_centred"): 0.56,
}


def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Run what is missing, print and write the table."""
    options = _parser().parse_args(arguments)
    wanted = {task for task, _, _ in REFERENCE}
    study = Study(
        tasks=tuple(_as_measured(task) for task in tasks() if task.name in wanted),
        methods=tuple(method for method in TRIVIAL if method.name in METHODS),
        seeds=tuple(range(options.seeds)),
    )
    frame = run(study, options.out / "reference_points").frame()
    table = compare(frame)
    rows = [[*map(str, row[:3]), f"{row[3]:.3f}", f"{row[4]:.3f}"] for row in table.to_numpy()]
    text = markdown_table(["task", "method", "metric", "reference", "here"], rows)
    (options.out / "reference_points.md").write_text(
        f"# Reference points\n\nMeans over folds, {options.seeds} seeds of five.\n\n{text}\n",
        encoding="utf-8",
    )
    print(text)
    return table


def _as_measured(task: Task) -> Task:
    """Return a task with the features of the reference: of molecules Morgan fingerprints alone."""
    return replace(task, features=morgan) if task.name == "lincs_unseen_drug" else task


def morgan(adata: AnnData) -> PerturbationFeatures:
    smiles = adata.obs.set_index(adata.obs["perturbation"].astype(str))["smiles"].astype(str)
    return PerturbationFeatures({"morgan": molecular_fingerprints(smiles, invalid="skip")})


def compare(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the mean over folds of each figure beside its reference."""
    folds = ["task", "method", "metric", "seed", "fold"]
    sums = frame.groupby(folds)[["numerator", "denominator"]].sum()
    found = (sums["numerator"] / sums["denominator"]).groupby(folds[:3]).mean()
    rows = [(*key, value, found.get(key, np.nan)) for key, value in REFERENCE.items()]
    return pd.DataFrame(rows, columns=["task", "method", "metric", "reference", "here"])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.reference_points", description=__doc__
    )
    parser.add_argument("--seeds", type=int, default=9, help="number of seeds, from 0")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser


if __name__ == "__main__":
    main()
