"""Tables that are measured in parts, each in a process of its own, beside what was promised.

A part is a module of a package such as `benchmarks.scale` with a function
`rows(*, quick: bool) -> Iterator[Row]`.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import pandas as pd

from scvi_perturb.benchmark import markdown_table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")

RESULTS: Final = Path(__file__).resolve().parent / "results"
ONE_THREAD: Final = {
    f"{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA", "POLARS")
}


@dataclass(frozen=True, slots=True)
class Row:
    """A measurement beside its bar.

    `met` is None where nothing was promised, or where a quick run is too small to tell.
    """

    what: str
    value: float
    unit: str
    bar: str = ""
    met: bool | None = None
    note: str = ""


def cpu_seconds(function: Callable[[], _T]) -> tuple[float, _T]:
    """Return the CPU seconds of this process that a call takes, and what it returns."""
    start = time.process_time()
    result = function()
    return time.process_time() - start, result


def peak_gib() -> float:
    """Return the most memory this process ever held, in GiB; each part has its own process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def exponent(sizes: tuple[float, float], costs: tuple[float, float]) -> float:
    """Return the power of the size with which the cost grows."""
    return math.log(costs[1] / costs[0]) / math.log(sizes[1] / sizes[0])


def main(package: str, all_parts: Sequence[str], arguments: Sequence[str] | None = None) -> int:
    """Measure the parts asked for; the table holds the last measurement of every part."""
    parser = argparse.ArgumentParser(prog=f"python -m {package}", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(all_parts)}; all by default")
    parser.add_argument("--quick", action="store_true", help="small sizes, a few minutes in all")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    parts = options.parts or all_parts
    unknown = sorted(set(parts) - set(all_parts))
    if unknown:
        parser.error(f"unknown parts {unknown}; expected some of {all_parts}")
    if options.here:
        _measure(package, parts[0], options.out, quick=options.quick)
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in parts:
        command = [sys.executable, "-m", package, part, "--here", "--out", options.out]
        command += ["--quick"] if options.quick else []
        print(f"== {part}", flush=True)
        if subprocess.run(command, env=os.environ | ONE_THREAD, check=False).returncode:
            failed.append(part)
    print(report(options.out, package, all_parts))
    return len(failed)


def _measure(package: str, part: str, out: Path, *, quick: bool) -> None:
    """Write the rows of one part as they come."""
    rows, name = [], package.rsplit(".", maxsplit=1)[-1]
    for row in importlib.import_module(f"{package}.{part}").rows(quick=quick):
        print(row, flush=True)
        rows.append(asdict(row))
        pd.DataFrame(rows).to_csv(out / f"{name}_{part}.csv", index=False, float_format="%.4g")


def report(out: Path, package: str, all_parts: Sequence[str]) -> str:
    """Write and return the table of all parts that were measured."""
    name = package.rsplit(".", maxsplit=1)[-1]
    found = [out / f"{name}_{part}.csv" for part in all_parts]
    frame = pd.concat([pd.read_csv(path) for path in found if path.exists()], ignore_index=True)
    met = frame["met"].astype("boolean")
    frame["met"] = met.map({True: "yes", False: "no"}).astype("object").fillna("")
    frame["value"] = [f"{value:.3g}" for value in frame["value"]]
    frame = frame.fillna("")
    text = markdown_table([*map(str, frame)], frame.to_numpy().tolist())
    (out / f"{name}.md").write_text(f"# {name.capitalize()}\n\n{text}\n", encoding="utf-8")
    return text
