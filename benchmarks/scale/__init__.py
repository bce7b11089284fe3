"""Time and memory on large screens: `python -m benchmarks.scale`."""

from __future__ import annotations

from typing import Final

from benchmarks._parts import Row, cpu_seconds, exponent, peak_gib

__all__ = ["PARTS", "Row", "cpu_seconds", "exponent", "peak_gib"]

#: The parts, in the order of the table.
PARTS: Final = (
    "matching",
    "training",
    "response",
    "gaussian_process",
    "disk",
    "readers",
    "sampling",
)
