"""Where samplers stop on the way from noise to data, and the step between two stops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb.generative._schedule import Schedule

__all__ = ["Point", "grid", "ratio", "step"]


@dataclass(frozen=True, slots=True)
class Point:
    """A moment of the reverse process."""

    t: float
    log_snr: float
    alpha: float
    sigma: float

    @property
    def norm(self) -> float:
        """Return the scale of `x_t` for data of variance 1."""
        return math.hypot(self.alpha, self.sigma)

    @property
    def angle(self) -> float:
        """Return the angle that runs from 0 (data) to pi / 2 (noise)."""
        return math.atan2(self.sigma, self.alpha)


def grid(schedule: Schedule, n_steps: int) -> list[Point]:
    """Return the `n_steps + 1` points from noise to data.

    The log-SNR is `3 logit(u)` at even `u`: dense about 0, where the denoised data change most, and
    wider towards both ends. It is the same for every schedule, so schedules differ in training
    only. The factor was chosen on Gaussians of standard deviation 0.05-1.5 and a 32-d mixture.
    """
    low, high = schedule.log_snr(torch.tensor([1.0, 0.0], dtype=torch.float64)).tolist()
    ends = torch.sigmoid(torch.tensor([low, high], dtype=torch.float64) / 3).tolist()
    log_snr = 3 * torch.logit(torch.linspace(ends[0], ends[1], n_steps + 1, dtype=torch.float64))
    t = schedule.time_of_log_snr(log_snr)
    t[0], t[-1] = 1.0, 0.0
    columns = torch.stack([t, log_snr, schedule.alpha(t), schedule.sigma(t)], dim=1)
    return [Point(*row) for row in columns.tolist()]


def ratio(now: Point, then: Point) -> float:
    """Return `e^-h`: the ratio of `alpha / sigma` now to that of the (less noisy) point `then`."""
    return (now.alpha * then.sigma) / (now.sigma * then.alpha)


def step(x: Tensor, x0: Tensor, now: Point, then: Point) -> Tensor:
    """Return `x` at `then`, exact while the denoised `x0` stays the same."""
    keep = then.sigma / now.sigma
    return keep * x + (then.alpha * (1 - ratio(now, then))) * x0
