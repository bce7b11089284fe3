"""Compare methods on tasks with trivial predictions and a replicate of the experiment."""

from __future__ import annotations

from scvi_perturb.benchmark._cell_eval import to_cell_eval
from scvi_perturb.benchmark._evaluation import evaluate, peak_memory, reset_peak_memory
from scvi_perturb.benchmark._summary import summarize
from scvi_perturb.benchmark.methods import (
    REPLICATE,
    TRIVIAL,
    Method,
    ModelPredictor,
    Setting,
    get_method,
    model_method,
)
from scvi_perturb.benchmark.report import (
    markdown_table,
    markdown_tables,
    study_report,
    write_report,
)
from scvi_perturb.benchmark.results import Record, Results
from scvi_perturb.benchmark.runner import missing_jobs, run
from scvi_perturb.benchmark.study import Study, StudyFile, read_study
from scvi_perturb.benchmark.task import Task
from scvi_perturb.benchmark.trial import Trial

__all__ = [
    "REPLICATE",
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
    "get_method",
    "markdown_table",
    "markdown_tables",
    "missing_jobs",
    "model_method",
    "peak_memory",
    "read_study",
    "reset_peak_memory",
    "run",
    "study_report",
    "summarize",
    "to_cell_eval",
    "write_report",
]
