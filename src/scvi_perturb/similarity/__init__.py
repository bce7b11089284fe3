"""How alike perturbations and conditions are, and how new a request is."""

from __future__ import annotations

__all__: list[str] = []
