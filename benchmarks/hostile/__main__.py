"""Try bad inputs on the whole public surface: `python -m benchmarks.hostile`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from benchmarks.hostile.surface import limit_memory, run_surface
from benchmarks.hostile.world import World

#: What must have been tried for the figures to say anything.
FEWEST = 1_000


def main() -> int:
    """Print the table of outcomes, and return 1 unless every bad input was refused by us."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hostile", description=__doc__)
    parser.add_argument("--out", type=Path, help="file to write the table to as well")
    options = parser.parse_args()
    limit_memory()
    with tempfile.TemporaryDirectory() as folder:
        report = run_surface(World(Path(folder)))
    text = report.markdown()
    sys.stdout.write(text)
    if options.out is not None:
        options.out.write_text(text, encoding="utf-8")
    return int(bool(report.wrong or report.broken) or report.n < FEWEST)


if __name__ == "__main__":
    sys.exit(main())
