"""Run the parts, each in a process of its own, and write `results/answers.md`."""

from __future__ import annotations

import sys

from benchmarks._parts import main
from benchmarks.answers import PARTS

if __name__ == "__main__":
    sys.exit(main("benchmarks.answers", PARTS))
