"""Two sides of which some must oppose each other: singles that are hidden, and those that stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    import numpy as np

__all__ = ["NOWHERE", "Sides"]

#: Stands for components that are not measured alone.
NOWHERE = ""


class Sides:
    """Two sides, "hidden" and "seen", with items known to stand on opposite ones."""

    def __init__(self) -> None:
        self._up: dict[str, tuple[str, bool]] = {}

    def find(self, name: str) -> tuple[str, bool]:
        """Return the head of the name's party, and whether the name opposes it."""
        opposes = False
        while name in self._up:
            name, flip = self._up[name]
            opposes ^= flip
        return name, opposes

    def oppose(self, first: str, second: str) -> bool:
        """Put two on opposite sides; False where they are known to stand on one."""
        (head, flip), (other, other_flip) = self.find(first), self.find(second)
        if head == other:
            return flip != other_flip
        self._up[other] = head, flip == other_flip
        return True

    def hidden(self, names: Iterable[str], rng: np.random.Generator) -> set[str]:
        """Return the names on the hidden side, which is that of what was never measured."""
        head, opposes = self.find(NOWHERE)
        side = {head: opposes}
        found = set()
        for name in names:
            head, opposes = self.find(name)
            if side.setdefault(head, bool(rng.integers(2))) == opposes:
                found.add(name)
        return found
