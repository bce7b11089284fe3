"""The results of a study: a record of each method in each trial, and summaries."""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeAlias

import numpy as np
import pandas as pd

from scvi_perturb._checks import checked
from scvi_perturb._core import SchemaError
from scvi_perturb._files import finished_files, read_json, write_text
from scvi_perturb._version import __version__
from scvi_perturb.benchmark._summary import summarize

if TYPE_CHECKING:
    from collections.abc import Callable

    from scvi_perturb.benchmark.methods import Method, Role
    from scvi_perturb.benchmark.study import Study
    from scvi_perturb.benchmark.task import Task

#: What conditions are grouped by: how much they change, or how far they are from training.
Stratum: TypeAlias = Literal[
    "effect", "agreement", "n_cells", "n_seen", "feature_distance", "context_distance"
]
#: Agreement of two halves of a condition's cells from which its effect counts as clear.
CLEAR: Final = 0.5

_FORMAT: Final = 1


@checked
@dataclass(frozen=True, kw_only=True)
class Record:
    """Scores of one method in one fold of a task with one seed, with their provenance.

    Parameters
    ----------
    task, method, role, seed, fold
        What was scored.
    fingerprint
        Of the task's and the method's definition: a record of another definition is not reused.
    status, message
        "ok"; "partial": the method refused some conditions, of which it knows too little;
        "refused": all of them; "failed": it raised something else. The message says why.
    warnings
        What this package warned of while the method was fitted and asked.
    scores
        Columns of the table of scores: `condition`, `metric`, `numerator`, `denominator`.
    conditions
        One dict a condition, see `HeldOutCondition.about`.
    cost
        `train_seconds`, `predict_seconds`, `n_trained` and `n_predicted` cells, `peak_mib` above
        what was held before, and `n_parameters` where a method says it.
    curves
        For figures: `pit` (shares of ranks of single cells in equal bins), `effect_pit` (the
        same of effects), `predicted` and `observed` changes of the genes that change most.
    provenance
        Versions, the split and its data's fingerprint, units.
    """

    task: str
    method: str
    role: Role
    seed: int
    fold: int
    fingerprint: str
    status: Literal["ok", "partial", "refused", "failed"] = "ok"
    message: str = ""
    warnings: list[str] = field(default_factory=list)
    scores: dict[str, list[Any]] = field(default_factory=dict)
    conditions: list[dict[str, Any]] = field(default_factory=list)
    cost: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        """Write the record, whole or not at all."""
        path = record_path(folder, self.task, self.method, self.seed, self.fold)
        state = {"format": _FORMAT} | asdict(self)
        write_text(path, json.dumps(state, allow_nan=True), make_folder=True)
        return path

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a record.

        Raises `SchemaError`: If the file is not one.
        """
        try:
            state = read_json(path, kind="a record of a benchmark")
            known = state.pop("format") == _FORMAT
            record = cls(**state)
        except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
            known = False
        if not known:
            msg = f"{path} is not a record of a benchmark of this version; delete it."
            raise SchemaError(msg)
        return record


def record_path(folder: Path, task: str, method: str, seed: int, fold: int) -> Path:
    """Return the path of a record."""
    return folder / "records" / task / method / f"seed{seed}_fold{fold}.json"


#: Keys that say which condition a cell has.
CONDITION_KEYS: Final = ("perturbation", "dose", "time", "kind", "control", "separator")


def fingerprint(task: Task, method: Method | None, seed: int, fold: int) -> str:
    """Return a fingerprint of what defines a record: it changes when any of it does."""
    for_readers = ("title", "note")
    state = {name: _plain(value) for name, value in vars(task).items() if name not in for_readers}
    keys = task.keys  # as they were written down when contexts and layer stood beside them
    state["keys"] = {n: getattr(keys, n) for n in CONDITION_KEYS}
    state |= {"context_keys": keys.context, "layer": keys.layer}
    made = None if method is None else _plain(method.make)
    options = task.fold_options[fold] if task.fold_options else None
    state["fold_options"] = options and asdict(options)
    text = json.dumps([__version__, state, made, seed, fold], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _plain(value: Any) -> Any:  # noqa: ANN401
    """Return a definition in plain types; a function is its name, with what is bound to it."""
    if isinstance(value, partial):
        bound = {key: _plain(one) for key, one in value.keywords.items()}
        return [_plain(value.func), [_plain(one) for one in value.args], bound]
    if callable(value):
        return _definition_name(value)
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value


#: Where the definitions stood by which results are known; they may move, and results stay valid.
_FORMER_MODULES: Final = {
    name: f"scvi_perturb.{module}"
    for module, names in {
        "benchmark._models": "_condition_gp _make _stacked_mean",
        "benchmark._study_files": "FeatureFiles ScreenFile",
        "benchmark._trivial": "_context_mean _dose_line _mean_in_context _nearest_cells "
        "_negative_binomial _no_change _plain _shifted _unchanged_cells _with_features",
        "data._datasets": "load_dataset",
        "data._simulate": "simulate_screen",
        "data._simulate_oracle": "perturbation_features",
        "predictors._additive": "Additive",
        "predictors._kernel_ridge": "KernelRidge",
        "predictors._latent_additive": "LatentAdditive",
        "predictors._matching_mean": "MatchingMean",
        "predictors._nearest_perturbation": "NearestPerturbation",
        "predictors._pca_ridge": "PCARidge",
    }.items()
    for name in names.split()
}


def _definition_name(function: Callable[..., Any]) -> str:
    """Return the name of a function; with its code where the name does not tell it from others."""
    qualified = getattr(function, "__qualname__", None)
    module = function.__module__
    if module.startswith("scvi_perturb."):
        module = _FORMER_MODULES.get(qualified or type(function).__qualname__, module)
    name = f"{module}.{qualified or repr(function)}"
    code = getattr(function, "__code__", None)
    if code is None or not ("<lambda>" in name or "<locals>" in name):
        return name
    return f"{name}:{code.co_code.hex()}:{code.co_consts}:{code.co_names}"


@checked
@dataclass(frozen=True)
class Results:
    """Results on disk, or in memory.

    Parameters
    ----------
    folder
        Folder that `run` wrote to.
    study
        What was run; with it, only what was made by its definitions is read. None reads all.
    made
        Records in memory, which are then all there is; None reads those of the folder.
    """

    folder: Path
    study: Study | None = None
    made: tuple[Record, ...] | None = None

    def records(self) -> list[Record]:
        """Return all records.

        Raises `SchemaError`: If there are none, or a file is not a record.
        """
        if self.made is not None:
            return list(self.made)
        paths = finished_files(Path(self.folder) / "records", "*/*/*.json")
        found = [Record.read(path) for path in paths]
        if self.study is not None:
            wanted = {
                fingerprint(job.task, method, job.seed, job.fold)
                for job in self.study.jobs()
                for method in (None, *job.methods)
            }
            found = [record for record in found if record.fingerprint in wanted]
        if not found:
            msg = f"There are no results in {self.folder}; run the study first."
            raise SchemaError(msg)
        return found

    def frame(self) -> pd.DataFrame:
        """Return all scores as a tidy table.

        Returns one row a task, method, seed, fold, condition and metric: `numerator`, `denominator`
        and `value`; besides `role` of the method and what is known of the condition (`n_cells`,
        `effect`, `agreement`, `n_seen`, `perturbation`, `context`).
        """
        parts = []
        for record in self.records():
            scores = pd.DataFrame(record.scores)
            if scores.empty:
                continue
            about = pd.DataFrame(record.conditions)
            same = {name: getattr(record, name) for name in ("task", "method", "role", "seed")}
            scores = scores.merge(about, on="condition", how="left").assign(
                fold=record.fold, **same
            )
            parts.append(scores)
        if not parts:
            msg = f"Every method refused or failed; see `Results({str(self.folder)!r}).status()`."
            raise SchemaError(msg)
        table = pd.concat(parts, ignore_index=True)
        below = table["denominator"].where(table["denominator"] > 0)
        table["value"] = table["numerator"] / below
        first = ["task", "method", "role", "seed", "fold", "condition", "metric", "value"]
        return table[[*first, *(name for name in table if name not in first)]]

    def status(self) -> pd.DataFrame:
        """Return the outcome of each method in each trial: `status`, `message`, `warnings`."""
        columns = ("task", "method", "role", "seed", "fold", "status", "message", "warnings")
        return pd.DataFrame([{c: getattr(r, c) for c in columns} for r in self.records()])

    def cost(self) -> pd.DataFrame:
        """Return the mean cost of each method over trials.

        Returns one row a task and method: seconds of training and of prediction, cells trained and
        predicted a second, peak memory in MiB above what was held before, trained parameters.
        """
        rows = [
            {"task": r.task, "method": r.method, "role": r.role, **r.cost}
            for r in self.records()
            if r.cost
        ]
        if not rows:
            return pd.DataFrame(columns=["task", "method", "role"])
        table = pd.DataFrame(rows).groupby(["task", "method", "role"], sort=False).mean()
        table["trained_per_second"] = table["n_trained"] / table["train_seconds"]
        table["predicted_per_second"] = table["n_predicted"] / table["predict_seconds"]
        return table.reset_index()

    def summary(
        self, *, clear: bool = False, n_boot: int = 1000, seed: int | None = 0
    ) -> pd.DataFrame:
        """Return each metric next to the best trivial prediction and the replicate.

        `clear`: Only conditions with a clear effect: the changes of two halves of their cells
        correlate at least by 0.5. Conditions without cells all count. `n_boot`: Bootstrap samples
        of conditions. `seed`: Seed of the bootstrap. Returns see `summarize`.
        """
        frame = self.frame()
        if clear:
            frame = frame[frame["agreement"].isna() | (frame["agreement"] >= CLEAR)]
        return summarize(frame, n_boot=n_boot, seed=seed)

    def strata(
        self, by: Stratum = "effect", *, n: int = 2, n_boot: int = 1000, seed: int | None = 0
    ) -> pd.DataFrame:
        """Return summaries of conditions grouped by effect size or by distance from training.

        `by`: "effect", "agreement", "n_cells"; or how far from training: "n_seen",
        "feature_distance", "context_distance"; see `HeldOutCondition.about`. `n`: Number of strata
        of about equal size, cut at quantiles; a stratum for each value where there are not more.
        `n_boot`, `seed`: As in `summary`. Returns as `summary`, with the column `stratum`: the
        range of values, or the value. Conditions of which the value is not known are a stratum of
        their own, "unknown".
        """
        frame = self.frame()
        parts = []
        for _, part in frame.groupby("task", sort=False):
            for name, rows in part.groupby(_strata_of(part, by, n), sort=False):
                parts.append(summarize(rows, n_boot=n_boot, seed=seed).assign(stratum=name))
        return pd.concat(parts, ignore_index=True)


def _strata_of(frame: pd.DataFrame, by: Stratum, n: int) -> pd.Series[str]:
    """Return the stratum of each row of a table of scores of one task."""
    values = frame.groupby("condition")[by].mean()
    known = values.dropna()
    distinct = np.unique(known)
    if len(distinct) <= n:
        named = {value: f"{by} {value:.3g}" for value in distinct}
        strata = values.map(named)
    else:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, n + 1)))
        place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        names = [f"{by} {low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)]
        strata = pd.Series([names[i] for i in place], index=values.index).where(values.notna())
    return frame["condition"].map(strata.fillna("unknown"))
