"""Every method on every task: `python -m benchmarks.leaderboard`.

All trivial predictions, the finished models and a replicate of the experiment, on public screens
and on simulated ones; written to `docs/leaderboard.md` and to an HTML report. A run that was
interrupted goes on where it stopped. `--quick` takes one seed and two folds of each task.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks._tasks import missing, tasks
from scvi_perturb import FlowConfig
from scvi_perturb.benchmark import (
    TRIVIAL,
    Results,
    Study,
    get_method,
    markdown_tables,
    model_method,
    run,
    write_report,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.benchmark import Method, Record

ROOT: Final = Path(__file__).resolve().parents[1]
PAGE: Final = ROOT / "docs" / "leaderboard.md"
RESULTS: Final = ROOT / "benchmarks" / "results" / "leaderboard"
#: Models of the mean.
MEANS: Final = tuple(map(get_method, ("condition_gp", "stacked_mean", "stacked_mean_contrast")))
#: Finished models: name in results, class, and what is chosen.
MODELS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "PerturbDiffusion": ("PerturbDiffusion", {}),
    "HybridResidualModel": ("HybridResidualModel", {}),
    "PerturbFlow": ("PerturbFlow", {}),
    "PerturbFlow-noise": ("PerturbFlow", {"flow": FlowConfig(source="noise")}),
}
QUICK_FOLDS: Final = 2


def main(arguments: Sequence[str] | None = None) -> Results:
    """Run what is missing, write the page and the report."""
    options = _parser().parse_args(arguments)
    chosen = [task for task in tasks() if options.tasks is None or task.name in options.tasks]
    for file in missing():
        print(f"no {file}: its task is left out (SCVI_PERTURB_DATA)")
    study = Study(
        tasks=tuple(chosen),
        methods=(*TRIVIAL, *MEANS, *map(_method, options.models)),
        seeds=(0,) if options.quick else tuple(range(options.seeds)),
        max_folds=QUICK_FOLDS if options.quick else None,
    )
    start = time.perf_counter()
    if options.report:
        results = Results(options.out, study)
    else:
        results = run(study, options.out, n_workers=options.workers, fresh=options.fresh,
                      progress=_told)  # fmt: skip
    print(f"{time.perf_counter() - start:.0f} s")
    write_report(results, options.out / "report.html")
    page = options.out / "leaderboard.md" if options.quick or options.tasks else PAGE
    page.write_text(markdown_tables(results), encoding="utf-8")
    print(f"{page}\n{options.out / 'report.html'}")
    return results


def _method(name: str) -> Method:
    model, chosen = MODELS[name]
    return model_method(model, name=name, model_options=chosen)


def _told(record: Record) -> None:
    cost = record.cost
    seconds = cost.get("train_seconds", 0.0) + cost.get("predict_seconds", 0.0)
    print(
        f"{record.task}, seed {record.seed}, fold {record.fold}: {record.method} {record.status} "
        f"({seconds:.1f} s) {record.message[:120]}",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaderboard", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two folds of each task")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--tasks", nargs="+", help="names of tasks (default: all)")
    parser.add_argument(
        "--models", nargs="*", default=list(MODELS), choices=MODELS, help="models to judge"
    )
    parser.add_argument("--workers", type=int, default=1, help="number of processes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    parser.add_argument("--report", action="store_true", help="write what is there, run nothing")
    parser.add_argument("--fresh", action="store_true", help="forget earlier results")
    return parser


if __name__ == "__main__":
    main()
