"""Stage two: a chain of conditional splines from noise, both ways in one pass."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from scvi.module.base import LossOutput
from torch import Tensor

from scvi_perturb.generative import FlowDensity, standard_normal_log_prob
from scvi_perturb.module._asked import Asked
from scvi_perturb.module._generator import LatentGenerator
from scvi_perturb.nn import SplineChain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scvi_perturb._typing import Batch
    from scvi_perturb.generative import SamplerConfig
    from scvi_perturb.module._conditions import ConditionTensors
    from scvi_perturb.module._flow_config import FlowConfig

__all__ = ["LatentSplines"]


class LatentSplines(LatentGenerator):
    """A discrete normalising flow of displacements from the mean control, trained by likelihood.

    Parameters
    ----------
    n_latent, conditions, n_identities, features, n_contexts, config
        See :class:`scvi_perturb.module.LatentGenerator`.

    References
    ----------
    Durkan et al., Neural spline flows, 2019.
    """

    config: FlowConfig

    def _make_network(self, n_latent: int, config: FlowConfig) -> SplineChain:  # type: ignore[override]
        return SplineChain(
            n_latent,
            config.n_condition + n_latent,
            n_transforms=config.n_transforms,
            n_bins=config.n_bins,
            width=config.width,
        )

    def loss(self, tensors: Batch) -> LossOutput:
        """Return the negative log-density of each cell, a dimension."""
        nets = self.learned if self.training else self.average
        target, reference, condition = self._examples(nets, tensors)
        given = torch.cat([condition, self._white(reference)], dim=1)
        noise, volume = nets.network.inverse(target, given)
        loss = -(standard_normal_log_prob(noise) + volume) / self.n_latent
        return LossOutput(loss=loss.mean(), reconstruction_loss=loss)

    @torch.no_grad()
    def sample_latent(
        self,
        conditions: ConditionTensors,
        which: Tensor,
        reference: Tensor,
        context: Tensor,
        *,
        sampler: SamplerConfig,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Draw latents of cells under conditions, see `LatentGenerator.sample_latent`."""
        _refuse_guidance(sampler)
        asked = Asked(conditions, which, reference, context)
        noise = torch.randn(
            reference.shape, generator=generator, device=reference.device, dtype=reference.dtype
        )
        return self._to_data(asked, noise)

    @torch.no_grad()
    def follow(
        self, asked: Asked, latent: Tensor, *, times: Sequence[float], sampler: SamplerConfig
    ) -> Iterator[Tensor]:
        """Carry latents to the other end; the chain has no points between its ends.

        Arguments as for `LatentFlow.follow`. At time 0 latents are those of the noise, in the
        coordinates of the data.

        Raises
        ------
        ValueError
            For times other than 0 and 1.
        """
        _refuse_guidance(sampler)
        if not set(times) <= {0.0, 1.0}:
            msg = "A chain of splines has no points between its ends; ask for the times 0 and 1."
            raise ValueError(msg)
        for start, end in itertools.pairwise(times):
            if end > start:
                latent = self._to_data(asked, self._enter(asked, latent))
            elif end < start:
                noise, _ = self._to_noise(asked, latent)
                latent = self._leave(asked, noise)
            yield latent

    @torch.no_grad()
    def log_density(
        self,
        asked: Asked,
        latent: Tensor,
        *,
        sampler: SamplerConfig,
        n_probes: int | None,
        generator: torch.Generator | None,
        with_step_error: bool = True,
    ) -> FlowDensity:
        """Return the log-density of latents under their conditions, without any error."""
        _refuse_guidance(sampler)
        del n_probes, generator, with_step_error
        noise, volume = self._to_noise(asked, latent)
        found = standard_normal_log_prob(noise) + volume - self.target_scale.log().sum()
        none = torch.zeros_like(found)
        return FlowDensity(found, none, none, self._leave(asked, noise))

    def _hidden(self, code: Tensor) -> Tensor:
        """Hide no condition: there is no guidance that would ask for it."""
        return torch.zeros_like(code, dtype=torch.bool)

    def _given(self, asked: Asked) -> Tensor:
        embedded, _, place = self._embedded(asked.conditions, asked.which, asked.context)
        return torch.cat([embedded[place], self._white(asked.reference)], dim=1)

    def _to_data(self, asked: Asked, noise: Tensor) -> Tensor:
        return self._leave(asked, self.average.network(noise, self._given(asked)))

    def _to_noise(self, asked: Asked, latent: Tensor) -> tuple[Tensor, Tensor]:
        return self.average.network.inverse(self._enter(asked, latent), self._given(asked))

    def _origin(self, asked: Asked) -> Tensor:
        return asked.reference + self.target_shift + self._centre(asked.conditions)[asked.which]

    def _enter(self, asked: Asked, latent: Tensor) -> Tensor:
        return (latent - self._origin(asked)) / self.target_scale

    def _leave(self, asked: Asked, scaled: Tensor) -> Tensor:
        return scaled * self.target_scale + self._origin(asked)


def _refuse_guidance(sampler: SamplerConfig) -> None:
    if sampler.guidance_scale != 1.0:
        msg = f"guidance_scale={sampler.guidance_scale}: splines have no guidance; leave it at 1."
        raise ValueError(msg)
