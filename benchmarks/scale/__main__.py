"""Run the parts, each in a process of its own, and write `results/scale.md`."""

from __future__ import annotations

import sys

from benchmarks._parts import main
from benchmarks.scale import PARTS

if __name__ == "__main__":
    sys.exit(main("benchmarks.scale", PARTS))
