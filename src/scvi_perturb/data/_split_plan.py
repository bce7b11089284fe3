"""How much a split holds out, and which part of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scvi_perturb.data._split_options import SplitOptions

__all__ = ["SplitPlan"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """How much is held out, which part of it, and in which random order.

    Parameters
    ----------
    fraction
        Share of what can be held out, in (0, 1].
    fold
        Which share: folds of one seed do not overlap.
    seed
        Seed of the order.
    options
        What only some kinds ask for.

    Raises
    ------
    ValueError
        If the fraction or fold is out of range.
    """

    fraction: float
    fold: int
    seed: int
    options: SplitOptions

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            msg = f"fraction={self.fraction} is not a share; expected 0 < fraction <= 1."
            raise ValueError(msg)
        n_folds = math.floor(1 / self.fraction + 1e-9)
        if not 0 <= self.fold < n_folds:
            msg = f"fold={self.fold} does not exist: expected 0 to {n_folds - 1}, for 1 / fraction."
            raise ValueError(msg)

    def take(self, items: Iterable[T]) -> set[T]:
        """Return this fold's share of `items`, at least one; the items are in sorted order.

        Raises
        ------
        ValueError
            If there are not that many folds.
        """
        ordered = list(items)
        share = max(self.fraction, 1 / len(ordered))
        n_folds = math.floor(1 / share + 1e-9)
        if self.fold >= n_folds:
            msg = (
                f"fold={self.fold} does not exist: {len(ordered)} items and fraction="
                f"{self.fraction:g} make {n_folds} folds, numbered from 0."
            )
            raise ValueError(msg)
        place = np.random.default_rng([self.seed, 0]).permutation(len(ordered))
        start, stop = (
            math.floor(edge * share * len(ordered) + 0.5 + 1e-9)
            for edge in (self.fold, self.fold + 1)
        )
        return {ordered[i] for i in place[start:stop]}
