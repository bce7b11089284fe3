"""How names are listed in a message."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["listed"]

_MOST = 10


def listed(names: Sequence[str]) -> str:
    """Return up to ten names, and how many others there are."""
    shown = ", ".join(map(repr, names[:_MOST]))
    return shown if len(names) <= _MOST else f"{shown} and {len(names) - _MOST} others"
