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
    waiting: list[tuple[np.ndarray, Floats, Floats]] = []
    for chunk in drawn:
        shares = expected_proportions(chunk, likelihood)
        waiting.append((group[chunk.cells], shares, chunk.library.cpu().numpy()))
        last = waiting[-1][0][-1]
        yield from _finished(waiting, keep=int(last))
    yield from _finished(waiting, keep=None)


def _finished(
    waiting: list[tuple[np.ndarray, Floats, Floats]], *, keep: int | None
) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield groups of which no more cells come, and take them out of what is waiting."""
    groups = np.concatenate([part[0] for part in waiting]) if waiting else np.empty(0, int)
    done = [int(g) for g in dict.fromkeys(groups.tolist()) if g != keep]
    for one in done:
        masks = [part[0] == one for part in waiting]
        yield (
            one,
            np.concatenate([part[1][m] for part, m in zip(waiting, masks, strict=True)]),
            np.concatenate([part[2][m] for part, m in zip(waiting, masks, strict=True)]),
        )
    if done:
        kept = [tuple(values[part[0] == keep] for values in part) for part in waiting]
        waiting[:] = [part for part in kept if len(part[0])]


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
    if likelihood == "normal":
        amount = torch.expm1(parameters.mean).clamp_min(0)
        new = amount * factor
        if partial:
            return parameters._replace(mean=torch.log1p(new))
        scale = amount.sum(-1, keepdim=True) / new.sum(-1, keepdim=True).clamp_min(1e-12)
        return parameters._replace(mean=torch.log1p(new * scale))
    expected = parameters.mean
    if partial:
        return parameters._replace(mean=expected * factor)
    if parameters.zero_logits is not None:
        expected = expected * torch.sigmoid(-parameters.zero_logits)
    total = (expected * factor).sum(-1, keepdim=True).clamp_min(1e-12)
    scale = expected.sum(-1, keepdim=True) / total
    return parameters._replace(mean=parameters.mean * factor * scale)
