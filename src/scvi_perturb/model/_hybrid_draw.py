"""Draws of the hybrid: the generator's cells, moved group by group onto the mean of stage one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from scvi_perturb.model._draw import Drawn, expected_proportions

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from scvi_perturb.module import CountParameters

    Floats = np.ndarray

__all__ = ["group_populations", "moved", "moved_parameters"]


def group_populations(
    drawn: Iterable[Drawn], group: np.ndarray, likelihood: str
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield each group with the expected proportions and the library sizes of its cells.

    `group` is that of each entry of the plan drawn, whose entries stand together by group.
    """
    parts: list[tuple[Floats, Floats]] = []
    current = -1
    for chunk in drawn:
        of, library = group[chunk.cells], chunk.library.cpu().numpy()
        shares = expected_proportions(chunk, likelihood)
        for own in np.split(np.arange(len(of)), np.flatnonzero(np.diff(of)) + 1):
            if parts and of[own[0]] != current:
                yield current, *_joined(parts)
                parts = []
            current = int(of[own[0]])
            parts.append((shares[own], library[own]))
    if parts:
        yield current, *_joined(parts)


def _joined(parts: list[tuple[Floats, Floats]]) -> tuple[Floats, Floats]:
    shares, library = zip(*parts, strict=True)
    return np.concatenate(shares), np.concatenate(library)


def moved(drawn: Drawn, factors: Floats, likelihood: str, *, partial: bool) -> Drawn:
    """Return drawn cells with their proportions times factors, `(n_cells, n_genes)`."""
    device = drawn.library.device
    factor = torch.from_numpy(factors.astype(np.float32)).to(device)
    return replace(
        drawn, parameters=moved_parameters(drawn.parameters, factor, likelihood, partial=partial)
    )


def moved_parameters(
    parameters: CountParameters, factor: torch.Tensor, likelihood: str, *, partial: bool
) -> CountParameters:
    """Return parameters of counts whose expected proportions are multiplied by a factor a gene.

    The sum of what is expected of a cell stays, unless the genes are `partial`; dispersions and the
    probability of extra zeros stay too. Of a Normal likelihood of `log1p` values it is what these
    expect of proportions that moves.
    """
    normal = likelihood == "normal"
    mean = torch.expm1(parameters.mean).clamp_min(0) if normal else parameters.mean
    new = mean * factor
    if not partial:
        zeros = parameters.zero_logits
        there = torch.ones_like(mean) if zeros is None else torch.sigmoid(-zeros)
        before, after = ((x * there).sum(-1, keepdim=True) for x in (mean, new))
        new = new * (before / after.clamp_min(1e-12))
    return parameters._replace(mean=torch.log1p(new) if normal else new)
