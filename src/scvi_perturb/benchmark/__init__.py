"""Methods compared on tasks, beside trivial predictions and a replicate of the experiment."""

from __future__ import annotations

from scvi_perturb.benchmark._cell_eval import to_cell_eval
from scvi_perturb.benchmark._judge import evaluate
from scvi_perturb.benchmark._memory import peak_memory, reset_peak_memory
from scvi_perturb.benchmark._method import REPLICATE, Method, Setting
from scvi_perturb.benchmark._model import ModelPredictor
from scvi_perturb.benchmark._models import (
    CONDITION_GP,
    CONTRASTED_STACK,
    STACKED_MEAN,
    model_method,
)
from scvi_perturb.benchmark._record import Record
from scvi_perturb.benchmark._results import Results
from scvi_perturb.benchmark._run import missing_jobs, run
from scvi_perturb.benchmark._study import Study
from scvi_perturb.benchmark._study_file import StudyFile, read_study
from scvi_perturb.benchmark._summary import summarize
from scvi_perturb.benchmark._task import Task
from scvi_perturb.benchmark._trial import Trial
from scvi_perturb.benchmark._trivial import TRIVIAL
from scvi_perturb.benchmark._view import markdown_table, markdown_tables, write_report

__all__ = [
    "CONDITION_GP",
    "CONTRASTED_STACK",
    "REPLICATE",
    "STACKED_MEAN",
    "TRIVIAL",
    "Method",
    "ModelPredictor",
    "Record",
    "Results",
    "Setting",
    "Study",
    "StudyFile",
    "Task",
    "Trial",
    "evaluate",
    "markdown_table",
    "markdown_tables",
    "missing_jobs",
    "model_method",
    "peak_memory",
    "read_study",
    "reset_peak_memory",
    "run",
    "summarize",
    "to_cell_eval",
    "write_report",
]
