"""Means and their uncertainty where the truth is known: `python -m benchmarks.uncertainty`.

Simulated screens: combinations, doses and featured perturbations that were held out. How much of
the true effects is explained, beside a predictor that knows the true form; how often intervals
hold the true effect; how even the ranks of true cells among predicted ones are. And on all tasks,
whether leaving out what looks least sure leaves less error. A run goes on where it stopped.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from benchmarks._featured import featured
from benchmarks._oracle import oracle_profiles, true_profiles
from benchmarks._results import Results
from benchmarks._tasks import tasks
from scvi_perturb import HybridResidualModel
from scvi_perturb.benchmark import ModelPredictor, markdown_table
from scvi_perturb.data import sample_truth
from scvi_perturb.metrics import calibration_error, log_normalize, randomized_pit
from scvi_perturb.predictors import StackedMean
from scvi_perturb.predictors.profiles import TrainingProfiles
from scvi_perturb.predictors.request import parse_requests

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scvi_perturb.benchmark import Task
    from scvi_perturb.data import Split

RESULTS: Final = Path(__file__).resolve().parent / "results"
PAGE: Final = Path(__file__).resolve().parents[1] / "docs" / "uncertainty.md"
LEVELS: Final = (0.5, 0.8, 0.9, 0.95)
#: Screens whose truth is known.
SIMULATED: Final = (
    "sim_unseen_combination",
    "sim_dose_inner",
    "sim_dose_top",
    "sim_unseen_featured",
)
#: Tasks on which confidence is compared with error.
RISKY: Final = (*SIMULATED, "papalexi_unseen_perturbation", "lincs_unseen_drug",
                "morphic_unseen_gene")  # fmt: skip
#: What is chosen of the hybrid, by row of the table.
HYBRIDS: Final[dict[str, dict[str, Any]]] = {
    "HybridResidualModel": {},
    "HybridResidualModel, 5 refits": {"n_refits": 5},
}
METHODS: Final = ("StackedMean", *HYBRIDS)
KEYS: Final = ("task", "method", "seed", "fold", "row")
#: Of each kind; ranks of fewer are uneven by chance alone (0.019 with 500, 0.010 with 2,000).
N_CELLS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Trial:
    """A task's data, what is held out, and what is asked."""

    task: Task
    adata: AnnData
    split: Split
    request: pd.DataFrame

    @classmethod
    def make(cls, task: Task, seed: int, fold: int) -> Trial:
        adata = task.load(seed=seed) if task.name in SIMULATED else task.load()
        split = task.split(adata, seed=seed, fold=fold)
        columns = task.keys.obs_columns
        held = adata.obs.iloc[split.test][columns].drop_duplicates()
        return cls(task, adata, split, held.astype(object).reset_index(drop=True))

    @property
    def is_simulated(self) -> bool:
        return self.task.name in SIMULATED

    def truth(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the changes of held-out conditions and the variance of their measurement."""
        task = self.task
        profiles = TrainingProfiles.from_screen(
            self.adata,
            None,
            keys=task.keys,
            kind="effects" if task.values == "effects" else "pseudobulk",
            with_variances=True,
        )
        place = {
            pair: i
            for i, pair in enumerate(zip(profiles.conditions, profiles.contexts, strict=True))
        }
        asked = parse_requests(self.request, keys=task.keys)
        rows = [place[one.condition, one.context] for one in asked]
        changes = [
            profiles.profile([i]) - profiles.control_profile(one.context)
            for i, one in zip(rows, asked, strict=True)
        ]
        noise = profiles.variances
        return np.stack(changes), np.zeros_like(changes) if noise is None else noise[rows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, write the page."""
    options = _parser().parse_args(arguments)
    results = Results(options.out / "uncertainty.csv", KEYS)
    if options.fresh:
        results.clear()
    known = {task.name: task for task in (*tasks(), featured())}
    for name in options.tasks:
        for method in options.methods:
            if name in known and not (method != "StackedMean" and name not in SIMULATED):
                for seed in range(options.seeds):
                    for fold in known[name].folds:
                        run(known[name], method, seed, fold, results)
    text = report(results.frame())
    options.page.write_text(text, encoding="utf-8")
    print(text)


def run(task: Task, method: str, seed: int, fold: int, results: Results) -> None:
    """Score one fold, if that is still to be done."""
    if results.has(task.name, method, seed, fold, 0):
        return
    trial = Trial.make(task, seed, fold)
    predictor = _fitted(trial, method, seed)
    rows = effect_scores(trial, predictor)
    if method != "StackedMean":
        for row, score in zip(rows, cell_scores(trial, predictor, seed), strict=True):
            row["pit_ece"] = score
    for i, row in enumerate(rows):
        key = dict(zip(KEYS, (task.name, method, seed, fold, i), strict=True))
        results.add(key | row)
    total = pd.DataFrame(rows)
    print(f"{task.name}, {method}, seed {seed}, fold {fold}: error "
          f"{total['error'].sum() / total['size'].sum():.3f}", flush=True)  # fmt: skip


def _fitted(trial: Trial, method: str, seed: int) -> Any:  # noqa: ANN401
    task = trial.task
    features = None if task.features is None else task.features(trial.adata)
    effects = task.values == "effects"
    if method == "StackedMean":
        made: Any = StackedMean(features, seed=seed, profile="effects" if effects else "pseudobulk")
    else:
        made = ModelPredictor(
            HybridResidualModel, features=features, seed=seed, model_options=HYBRIDS[method]
        )
    return made.fit(
        trial.adata,
        trial.split,
        keys=task.keys,
    )


def effect_scores(trial: Trial, predictor: Any) -> list[dict[str, float]]:  # noqa: ANN401
    """Return error, coverage and confidence of each held-out condition."""
    asked = getattr(predictor, "model", predictor)
    answers = [asked.predict(trial.request, interval=level) for level in LEVELS]
    answer = answers[0]
    change = np.asarray(answer.layers["lfc"], np.float64)
    base = np.asarray(answer.X, np.float64) - change
    truth, noise = trial.truth()
    scores: dict[str, np.ndarray] = {}
    if trial.is_simulated:
        true = true_profiles(trial.adata, trial.request)
        oracle = oracle_profiles(trial.adata, trial.request, trial.task.kind)
        truth, noise = true - base, np.zeros_like(true)
        scores["oracle_error"] = ((oracle - true) ** 2).sum(axis=1)
        for level, one in zip(LEVELS, answers, strict=True):
            lower, upper = (np.asarray(one.layers[end]) for end in ("lower", "upper"))
            inside = (truth >= lower) & (truth <= upper)
            scores[f"coverage_{100 * level:.0f}"] = inside.mean(axis=1)
    scores["error"] = ((change - truth) ** 2 - noise).sum(axis=1)
    scores["size"] = (truth**2 - noise).sum(axis=1)
    scores["novelty"] = answer.obs["novelty"].to_numpy(np.float64)
    scores["stated_error"] = (np.asarray(answer.layers["std"], np.float64) ** 2).sum(axis=1)
    scores["effect_size"] = (change**2).sum(axis=1)
    scores["distance"] = _distances(trial)
    return pd.DataFrame(scores).to_dict("records")


def cell_scores(trial: Trial, predictor: Any, seed: int) -> list[float]:  # noqa: ANN401
    """Return how uneven the ranks of true cells among predicted ones are, for each condition."""
    cells = predictor.sample(trial.request, n_samples=N_CELLS, seed=seed)
    row = np.array([int(name.partition("_")[0].removeprefix("row")) for name in cells.obs_names])
    found = []
    for i, one in enumerate(trial.request.to_dict("records")):
        true = sample_truth(
            trial.adata, one["perturbation"], dose=one.get("dose"), context=one["cell_type"],
            n_cells=N_CELLS, seed=seed + 1,
        )  # fmt: skip
        predicted, observed = (log_normalize(x).toarray() for x in (cells.X[row == i], true.X))
        found.append(float(calibration_error(randomized_pit(predicted, observed, seed=seed))))
    return found


def _distances(trial: Trial) -> np.ndarray:
    """Return the distance to the nearest training perturbation: of features, or of log doses."""
    task, obs = trial.task, trial.adata.obs
    seen = obs.iloc[np.concatenate([trial.split.train, trial.split.validation])]
    names = [name for name in seen["perturbation"].astype(str).unique() if name != "control"]
    if task.features is None:
        if task.keys.dose is None:
            return np.full(len(trial.request), np.nan)
        logs = np.log(trial.request["dose"].astype(float).to_numpy())
        own = [np.log(seen.loc[seen["perturbation"] == name, "dose"].astype(float).unique())
               for name in trial.request["perturbation"]]  # fmt: skip
        return np.array([np.abs(a - b).min() for a, b in zip(logs, own, strict=True)])
    values = np.hstack([v for v, _ in task.features(trial.adata).table(names).values()])
    asked = task.features(trial.adata).table(trial.request["perturbation"].astype(str).tolist())
    new = np.hstack([v for v, _ in asked.values()])
    squared = (new**2).sum(1)[:, None] + (values**2).sum(1) - 2 * new @ values.T
    return np.sqrt(np.maximum(squared, 0)).min(axis=1)


def report(frame: pd.DataFrame) -> str:
    """Return the tables in Markdown."""
    head = Path(__file__).with_name("_uncertainty_head.md").read_text(encoding="utf-8")
    simulated = frame[frame["task"].isin(SIMULATED)]
    rows = []
    for (task, method), own in simulated.groupby(["task", "method"], sort=False):
        explained = 1 - own["error"].sum() / own["size"].sum()
        best = 1 - own["oracle_error"].sum() / own["size"].sum()
        covered = [f"{own[f'coverage_{100 * level:.0f}'].mean():.2f}" for level in LEVELS]
        ece = own["pit_ece"].mean() if "pit_ece" in own else np.nan
        n_screens = own["seed"].nunique()
        values = (f"{v:.3f}" for v in (explained, best, explained / best))
        rows.append([task, method, str(n_screens), *values,
                     *covered, "-" if np.isnan(ece) else f"{ece:.3f}"])  # fmt: skip
    titles = ["task", "method", "screens", "explained", "true form", "ratio", "50 %", "80 %",
              "90 %", "95 %", "cells, ECE"]  # fmt: skip
    first = markdown_table(titles, rows)
    rows = []
    for task, own in frame[frame["method"] == "StackedMean"].groupby("task", sort=False):
        kept = [kept_error(own, by) for by in ("novelty", "stated_error", "distance")]
        size = kept_error(own.assign(small=-own["effect_size"]), "small")
        everything = own["error"].sum() / own["size"].sum()
        oracle = kept_error(own.assign(ratio=own["error"] / own["size"].clip(1e-9)), "ratio")
        values = [everything, *kept, size, oracle]
        numbers = ("-" if np.isnan(v) else f"{v:.3f}" for v in values)
        rows.append([task, str(len(own)), *numbers])
    second = markdown_table(
        [
            "task",
            "conditions",
            "all",
            "novelty",
            "stated error",
            "nearest",
            "effect size",
            "hindsight",
        ],
        rows,
    )
    return head.replace("{calibration}", first).replace("{risk}", second)


def kept_error(own: pd.DataFrame, by: str) -> float:
    """Return the error ratio of the half of each fold with the least of something."""
    if own[by].isna().any():
        return float("nan")
    half = own.groupby(["seed", "fold"])[by].rank(pct=True, method="first") <= 0.5
    return float(own.loc[half, "error"].sum() / own.loc[half, "size"].sum())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.uncertainty", description=__doc__)
    parser.add_argument(
        "--seeds", type=int, default=1, help="number of seeds, from 0, also of simulated screens"
    )
    parser.add_argument("--tasks", nargs="+", default=list(RISKY), help="names of tasks")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--page", type=Path, default=PAGE, help="page to write")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    return parser


if __name__ == "__main__":
    main()
