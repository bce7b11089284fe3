"""Models in two stages: a representation of counts, and a generator in its latent."""

from __future__ import annotations

__all__: list[str] = []
