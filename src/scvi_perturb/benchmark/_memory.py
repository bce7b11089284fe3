"""The peak memory of this process."""

from __future__ import annotations

import resource
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["peak_memory", "reset_peak_memory"]

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def reset_peak_memory() -> float:
    """Forget the peak so far, where the system can, and return the memory now held, in MiB."""
    with suppress(OSError):  # where the system does not let it be forgotten
        _CLEAR.write_text("5", encoding="ascii")
    return _status("VmRSS") if _STATUS.exists() else peak_memory()


def peak_memory() -> float:
    """Return the largest resident memory of this process, in MiB.

    Linux hands the peak that `getrusage` reports on to child processes; /proc does not.
    """
    if _STATUS.exists():
        return _status("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _status(field: str) -> float:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return float(line.split()[1]) / 2**10
    msg = f"There is no {field} in {_STATUS}."
    raise OSError(msg)
