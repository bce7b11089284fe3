"""The results of a study: read from its folder, summed up, shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from scvi_perturb._errors import SchemaError
from scvi_perturb.benchmark._record import Record, fingerprint
from scvi_perturb.benchmark._strata import CLEAR, strata_of
from scvi_perturb.benchmark._summary import summarize

if TYPE_CHECKING:
    from scvi_perturb.benchmark._strata import Stratum
    from scvi_perturb.benchmark._study import Study

__all__ = ["Results"]


@dataclass(frozen=True)
class Results:
    """Results on disk.

    Parameters
    ----------
    folder
        Folder that `run` wrote to.
    study
        What was run; with it, only what was made by its definitions is read. None reads all.
    """

    folder: Path
    study: Study | None = None

    def records(self) -> list[Record]:
        """Return all records.

        Raises
        ------
        SchemaError
            If there are none, or a file is not a record.
        """
        found = [Record.read(p) for p in sorted((Path(self.folder) / "records").glob("*/*/*.json"))]
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
        """Return every score in one tidy table.

        Returns
        -------
        One row a task, method, seed, fold, condition and metric: `numerator`, `denominator` and
        `value`; besides `role` of the method and what is known of the condition (`n_cells`,
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
        """Return what became of each method in each trial: `status`, `message`, `warnings`."""
        columns = ("task", "method", "role", "seed", "fold", "status", "message", "warnings")
        return pd.DataFrame([{c: getattr(r, c) for c in columns} for r in self.records()])

    def cost(self) -> pd.DataFrame:
        """Return what each method cost, mean over trials.

        Returns
        -------
        One row a task and method: seconds of training and of prediction, cells trained and
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

    def summary(self, *, clear: bool = False, n_boot: int = 1000, seed: int = 0) -> pd.DataFrame:
        """Return each metric beside the best trivial prediction and the replicate.

        Parameters
        ----------
        clear
            Only conditions with a clear effect: the changes of two halves of their cells
            correlate at least by 0.5. Conditions without cells all count.
        n_boot
            Bootstrap samples of conditions.
        seed
            Seed of the bootstrap.

        Returns
        -------
        See `summarize`.
        """
        frame = self.frame()
        if clear:
            frame = frame[frame["agreement"].isna() | (frame["agreement"] >= CLEAR)]
        return summarize(frame, n_boot=n_boot, seed=seed)

    def strata(
        self, by: Stratum = "effect", *, n: int = 2, n_boot: int = 1000, seed: int = 0
    ) -> pd.DataFrame:
        """Return the summary of conditions that differ in size of effect or in distance.

        Parameters
        ----------
        by
            "effect", "agreement", "n_cells"; or how far from training: "n_seen",
            "feature_distance", "context_distance"; see `Case.about`.
        n
            Number of strata of about equal size, cut at quantiles; a stratum for each value
            where there are not more.
        n_boot, seed
            As in `summary`.

        Returns
        -------
        As `summary`, with the column `stratum`: the range of values, or the value. Conditions of
        which the value is not known are a stratum of their own, "unknown".
        """
        frame = self.frame()
        parts = []
        for _, part in frame.groupby("task", sort=False):
            for name, rows in part.groupby(strata_of(part, by, n), sort=False):
                parts.append(summarize(rows, n_boot=n_boot, seed=seed).assign(stratum=name))
        return pd.concat(parts, ignore_index=True)
