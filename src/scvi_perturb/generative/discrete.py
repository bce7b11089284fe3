"""Diffusion of discrete states: noising, its posterior, and ancestral sampling.

At time `t` a state is as it was with probability `alpha(t) = cos(pi t / 2)^2`, exactly 1 for the
data (t = 0), and otherwise noise: an absorbing mask, or a state drawn uniformly.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from scvi_perturb._checks import checked
from scvi_perturb.generative.samplers import check_evaluations

Transition = Literal["absorbing", "uniform"]

#: Maps noised states, a time and a mask of `m` of the states to the probabilities of the data
#: there, `(m, n_states)`.
Classifier = Callable[[Tensor, float, Tensor], Tensor]


@checked
@dataclass(frozen=True, slots=True)
class DiscreteDiffusion:
    """D3PM with absorbing or uniform transitions, in continuous time.

    Parameters
    ----------
    n_states
        Number of states of the data, `0..n_states-1`; the mask is state `n_states`.
    transition
        `"absorbing"` or `"uniform"`.

    References
    ----------
    Austin et al., Structured denoising diffusion models in discrete state-spaces, 2021; Sahoo et
    al., Simple and effective masked diffusion language models, 2024.
    """

    n_states: int
    transition: Transition = "absorbing"

    @property
    def n_symbols(self) -> int:
        """Number of states that noised data can have: the mask is one more."""
        return self.n_states + (self.transition == "absorbing")

    def alpha(self, t: Tensor) -> Tensor:
        """Return the probability that a state is unchanged."""
        return torch.cos(0.5 * math.pi * t) ** 2

    def noise(self, shape: torch.Size | tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draw states at time 1."""
        device = generator.device
        if self.transition == "absorbing":
            return torch.full(shape, self.n_states, device=device)
        return torch.randint(self.n_states, shape, generator=generator, device=device)

    def corrupt(self, x_0: Tensor, t: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draw `x_t` given states `x_0 (n, m)` and times `(n,)`."""
        device = x_0.device
        kept = torch.rand(x_0.shape, generator=generator, device=device)
        if self.transition == "absorbing":
            other = torch.full_like(x_0, self.n_states)
        else:
            other = torch.randint(self.n_states, x_0.shape, generator=generator, device=device)
        return torch.where(kept < self.alpha(t)[:, None], x_0, other)

    def posterior(self, x_t: Tensor, data: Tensor, t: float, s: float) -> Tensor:
        """Return `q(x_s | x_t)`, `(..., n_symbols)`, marginalised over the predicted data.

        `x_t`: States at time `t`, `(...)`. `data`: Probabilities of the data given `x_t`, `(...,
        n_states)`. `t`, `s`: Times, `s < t`.
        """
        if self.transition == "absorbing":
            masked = (x_t == self.n_states)[..., None]
            revealed = self._revealed(t, s)
            hidden = torch.full_like(data[..., :1], 1 - revealed)
            fresh = torch.cat([revealed * data, hidden], dim=-1)
            kept = torch.zeros_like(fresh).scatter_(-1, x_t[..., None], 1.0)
            return torch.where(masked, fresh, kept)
        # q(x_s | x_t, x_0) is q(x_t | x_s) q(x_s | x_0) over q(x_t | x_0), summed over x_0.
        at_t, at_s = self._alphas(t, s)
        step, k = at_t / max(at_s, 1e-12), self.n_states
        here = torch.zeros_like(data).scatter_(-1, x_t[..., None], 1.0)
        forward = step * here + (1 - step) / k
        seen = at_t * here + (1 - at_t) / k
        weight = data / seen
        before = at_s * weight + (1 - at_s) / k * weight.sum(-1, keepdim=True)
        return forward * before

    def sample(
        self,
        classify: Classifier,
        shape: torch.Size | tuple[int, ...],
        *,
        n_evaluations: int = 20,
        generator: torch.Generator,
    ) -> Tensor:
        """Draw states of the data, with one call of the network per step.

        A masked state is classified in the step in which it loses its mask.

        `classify`: `(x_t, t, places) -> probabilities of the data (m, n_states)`; `places` is a
        mask of `m` of the states, in whose order they come. `shape`: Of the result.
        `n_evaluations`: Number of steps, even in time. `generator`: Source of randomness. Raises
        `ValueError`: If there would be no step.
        """
        check_evaluations(n_evaluations)
        x = self.noise(shape, generator)
        times = torch.linspace(1, 0, n_evaluations + 1, dtype=torch.float64).tolist()
        for t, s in pairwise(times):
            places = self._changing(x, t, s, generator)
            chances = classify(x, t, places)
            if self.transition == "uniform":
                chances = self.posterior(x[places], chances, t, s)
            if len(chances):
                x[places] = torch.multinomial(chances, 1, generator=generator)[:, 0]
        return x

    def _changing(self, x_t: Tensor, t: float, s: float, generator: torch.Generator) -> Tensor:
        """Draw the mask of states to classify: those that lose their mask, or all."""
        if self.transition == "uniform":
            return torch.ones_like(x_t, dtype=torch.bool)
        chance = torch.rand(x_t.shape, generator=generator, device=x_t.device)
        return (x_t == self.n_states) & (chance < self._revealed(t, s))

    def _alphas(self, t: float, s: float) -> tuple[float, float]:
        at_t, at_s = (float(self.alpha(torch.tensor(u, dtype=torch.float64))) for u in (t, s))
        return at_t, at_s

    def _revealed(self, t: float, s: float) -> float:
        """Return the chance that a state masked at `t` is not at `s`."""
        at_t, at_s = self._alphas(t, s)
        return (at_s - at_t) / max(1 - at_t, 1e-12)
