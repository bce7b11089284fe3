"""A sampler of diffusions: the first-order DDIM with steps that are even in time."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from scvi_perturb.generative import Schedule


def even_ddim(
    predict_x0: object,
    x_1: torch.Tensor,
    schedule: Schedule,
    *,
    n_evaluations: int = 20,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Draw samples from noise `x_1`, with `n_evaluations` calls of `predict_x0(x_t, t)`."""
    del generator  # it draws nothing besides the noise
    times = torch.linspace(1, 0, n_evaluations + 1)
    x = x_1
    for now, then in pairwise(times):
        x0 = predict_x0(x, float(now))
        eps = (x - schedule.alpha(now) * x0) / schedule.sigma(now)
        x = schedule.alpha(then) * x0 + schedule.sigma(then) * eps
    return x
