"""Values of metadata that were not understood: kept in mind, and told."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Unknown"]

logger = logging.getLogger(__name__)

_MOST = 5


@dataclass(slots=True)
class Unknown:
    """The values of one field that were not understood.

    Parameters
    ----------
    expected
        What would have been understood, for the warning.
    suggest
        Gives what a value may have meant.
    """

    expected: str
    suggest: Callable[[str], list[str]] | None = None
    _n_cells: dict[str, int] = field(default_factory=dict)

    def add(self, label: str, n_cells: int) -> None:
        """Note a value and the number of cells that have it."""
        self._n_cells[label] = self._n_cells.get(label, 0) + n_cells

    @property
    def labels(self) -> list[str]:
        """The values, sorted."""
        return sorted(self._n_cells)

    def warn(self, field: str, n_cells: int) -> None:
        """Log one warning for all values of the field, the most frequent ones by name."""
        if not self._n_cells:
            return
        often = sorted(self._n_cells, key=lambda label: (-self._n_cells[label], label))
        named = []
        for label in often[:_MOST]:
            near = self.suggest(label) if self.suggest else []
            hint = f"; nearest: {', '.join(near)}" if near else ""
            named.append(f"{label!r} ({self._n_cells[label]}{hint})")
        rest = f" and {len(often) - _MOST} more" if len(often) > _MOST else ""
        logger.warning(
            "%s is not understood in %d of %d cells: %s%s. Expected %s. All are listed in "
            "uns['scvi_perturb']['unknown_terms'][%r].",
            *(field, sum(self._n_cells.values()), n_cells, ", ".join(named), rest),
            *(self.expected, field),
        )
