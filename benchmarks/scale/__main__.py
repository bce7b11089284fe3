"""Run the parts, each in a process of its own, and write `results/scale.md`."""

from __future__ import annotations

import argparse
import importlib
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pandas as pd

from benchmarks.scale import PARTS
from scvi_perturb.benchmark import markdown_table

if TYPE_CHECKING:
    from collections.abc import Sequence

RESULTS: Final = Path(__file__).resolve().parents[1] / "results"
ONE_THREAD: Final = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA", "POLARS")
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for; the table holds the last measurement of every part."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes in all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    parts = options.parts or PARTS
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        parser.error(f"unknown parts {unknown}; expected some of {PARTS}")
    if options.here:
        _measure(parts[0], options.out, quick=options.quick)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in parts:
        command = [sys.executable, "-m", "benchmarks.scale", part, "--here", "--out", options.out]
        command += ["--quick"] if options.quick else []
        print(f"== {part}", flush=True)
        if subprocess.run(command, env=os.environ | ONE_THREAD, check=False).returncode:
            failed.append(part)
    print(report(options.out))
    return len(failed)


def _measure(part: str, out: Path, *, quick: bool) -> None:
    """Write the rows of one part as they come."""
    rows = []
    for row in importlib.import_module(f"benchmarks.scale.{part}").rows(quick=quick):
        print(row, flush=True)
        rows.append(asdict(row))
        pd.DataFrame(rows).to_csv(out / f"scale_{part}.csv", index=False, float_format="%.4g")


def report(out: Path) -> str:
    """Write and return the table of all parts that were measured."""
    found = [out / f"scale_{part}.csv" for part in PARTS if (out / f"scale_{part}.csv").exists()]
    frame = pd.concat([pd.read_csv(path) for path in found], ignore_index=True)
    met = frame["met"].astype("boolean")
    frame["met"] = met.map({True: "yes", False: "no"}).astype("object").fillna("")
    frame["value"] = [f"{value:.3g}" for value in frame["value"]]
    frame = frame.fillna("")
    text = markdown_table([*map(str, frame)], frame.to_numpy().tolist())
    (out / "scale.md").write_text(f"# Scale\n\n{text}\n", encoding="utf-8")
    return text


if __name__ == "__main__":
    sys.exit(main())
