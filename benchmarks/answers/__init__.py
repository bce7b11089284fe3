"""What the functions of `tl` answer, beside a known truth: `python -m benchmarks.answers`."""

from __future__ import annotations

from typing import Final

from benchmarks._parts import Row

__all__ = ["PARTS", "Row"]

#: The parts, in the order of the table.
PARTS: Final[tuple[str, ...]] = ("differential", "conditions", "decisions")
