"""What figures show besides numbers: ranks, and predicted against measured changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scvi_perturb.metrics import effect_pit, top_genes
from scvi_perturb.metrics._of_means import effects

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb.metrics import Comparison

__all__ = ["N_BINS", "curves"]

#: Equal bins of ranks.
N_BINS = 20
_N_GENES, _MOST_CASES = 20, 50


def curves(cases: Sequence[Comparison]) -> dict[str, list[float]]:
    """Return shares of ranks in equal bins, of cells and of effects, and changes of top genes."""
    found = _changes(cases[:_MOST_CASES])
    of_cells = [
        case.ranks.ravel()
        for case in cases
        if case.predicted.cells is not None and case.truth.observed.cells is not None
    ]
    if of_cells:
        found["pit"] = _shares(np.concatenate(of_cells))
    of_effects = [
        effect_pit(*effects(case)) for case in cases if case.predicted.effect_std is not None
    ]
    if of_effects:
        found["effect_pit"] = _shares(np.concatenate(of_effects))
    return found


def _shares(ranks: np.ndarray) -> list[float]:
    counts, _ = np.histogram(ranks[np.isfinite(ranks)], bins=N_BINS, range=(0.0, 1.0))
    return [float(share) for share in counts / max(counts.sum(), 1)]


def _changes(cases: Sequence[Comparison]) -> dict[str, list[float]]:
    predicted: list[float] = []
    observed: list[float] = []
    for case in cases:
        control = case.truth.control.mean
        genes = top_genes(case.truth.observed.mean, control, _N_GENES)
        genes = genes[case.truth.kept[genes]]
        predicted += [float(x) for x in (case.predicted.mean - control)[genes]]
        observed += [float(x) for x in (case.truth.observed.mean - control)[genes]]
    return {"predicted": predicted, "observed": observed}
