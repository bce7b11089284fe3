"""Time and memory on large screens: `python -m benchmarks.scale`.

Each part is a module here with a function `rows(*, quick: bool) -> Iterator[Row]`.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")

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
