"""A table of results on disk that an interrupted run continues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Results"]


@dataclass(frozen=True, slots=True)
class Results:
    """Rows of a CSV file, each identified by some of its columns.

    Parameters
    ----------
    path
        The file; it need not exist.
    keys
        Columns that identify a row.
    """

    path: Path
    keys: tuple[str, ...]

    def frame(self) -> pd.DataFrame:
        """Return all rows so far."""
        if not self.path.exists():
            return pd.DataFrame(columns=list(self.keys))
        return pd.read_csv(self.path)

    def has(self, *key: object) -> bool:
        """Whether the row is there."""
        rows = self.frame()[list(self.keys)].astype(str).itertuples(index=False, name=None)
        return tuple(map(str, key)) in set(rows)

    def add(self, row: Mapping[str, object]) -> None:
        """Write a row at once; a run killed while writing leaves the rows before it whole."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        frame = self.frame()
        added = pd.DataFrame([dict(row)])
        frame = pd.concat([frame, added], ignore_index=True) if len(frame) else added
        partial = self.path.with_suffix(".partial")
        frame.to_csv(partial, index=False, float_format="%.6g")
        partial.replace(self.path)

    def clear(self) -> None:
        """Start anew."""
        self.path.unlink(missing_ok=True)
