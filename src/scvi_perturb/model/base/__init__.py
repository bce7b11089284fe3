"""What all models share."""

from __future__ import annotations

__all__: list[str] = []
