"""Stage two: denoising diffusion in the whitened latent, given a condition and a control cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from scvi.module.base import LossOutput

from scvi_perturb.generative import (
    SAMPLERS,
    add_noise,
    denoising_loss,
    get_schedule,
    guide,
    to_x0,
)
from scvi_perturb.module._generator import LatentGenerator

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from scvi_perturb._typing import Batch
    from scvi_perturb.generative import SamplerConfig, Schedule
    from scvi_perturb.module._conditions import ConditionTensors
    from scvi_perturb.module._diffusion_config import DiffusionConfig

__all__ = ["LatentDiffusion"]


class LatentDiffusion(LatentGenerator):
    """p(latent | condition, context, control cell) by denoising.

    Parameters
    ----------
    n_latent, conditions, n_identities, features, n_contexts, config
        See :class:`scvi_perturb.module.LatentGenerator`.

    References
    ----------
    Ho et al. 2020 (denoising diffusion); Song et al. 2021 (score SDE); Salimans and Ho 2022
    (v-prediction); Nichol and Dhariwal 2021 (cosine schedule); Ho and Salimans 2022 (guidance).
    """

    config: DiffusionConfig

    @property
    def schedule(self) -> Schedule:
        """The noise schedule."""
        return get_schedule(self.config.schedule)

    def loss(self, tensors: Batch) -> LossOutput:
        """Return the denoising loss of each cell, under weights being learned or their average."""
        nets = self.learned if self.training else self.average
        target, reference, condition = self._examples(nets, tensors)
        n = len(target)
        # Stratified times: the same law, less noise in the loss.
        time = (torch.randperm(n, device=target.device) + torch.rand(n, device=target.device)) / n
        noise = torch.randn_like(target)
        noised = add_noise(target, noise, time, self.schedule)
        modulation = nets.network.modulation(time, condition)
        prediction = nets.network(noised, self._reference_input(reference), modulation)
        loss = denoising_loss(
            prediction,
            target,
            noise,
            time,
            schedule=self.schedule,
            parameterisation=self.config.parameterisation,
            gamma=self.config.min_snr_gamma,
        )
        return LossOutput(loss=loss.mean(), reconstruction_loss=loss)

    @torch.inference_mode()
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
        centre = self._centre(conditions)[which]
        guidance = (sampler.guidance_scale, centre / self.target_scale)
        given = self._reference_input(reference)
        denoise = self._denoiser(conditions, which, given, context, guidance)
        noise = torch.randn(
            reference.shape, generator=generator, device=reference.device, dtype=reference.dtype
        )
        draw = SAMPLERS[sampler.method]
        scaled = draw(
            denoise, noise, self.schedule, n_evaluations=sampler.n_evaluations, generator=generator
        )
        drawn = scaled * self.target_scale + self.target_shift + centre
        return reference + drawn if self.from_cell else drawn

    def _denoiser(
        self,
        conditions: ConditionTensors,
        which: Tensor,
        reference: Tensor,
        context: Tensor,
        guidance: tuple[float, Tensor],
    ) -> Callable[[Tensor, float], Tensor]:
        """Return `(x_t, t) -> x_0`, with all that does not depend on the noise done once.

        `guidance` is its scale and the offset of the condition's centre, which a network
        without the condition does not know: it is asked, and answers, without it.
        """
        nets, kind, (scale, offset) = self.average, self.config.parameterisation, guidance
        embedded, hidden, place = self._embedded(conditions, which, context)

        def modulation(time: Tensor, condition: Tensor) -> Tensor:
            rows = nets.network.modulation(time.expand(len(condition)), condition)
            return rows if len(rows) == 1 else rows[place]

        def denoise(x_t: Tensor, t: float) -> Tensor:
            time = torch.tensor([t], device=x_t.device, dtype=x_t.dtype)
            output = nets.network(x_t, reference, modulation(time, embedded))
            x_0 = to_x0(output, x_t, time, self.schedule, kind)
            if scale == 1.0:
                return x_0
            moved = x_t + self.schedule.alpha(time) * offset
            output = nets.network(moved, reference, modulation(time, hidden))
            return guide(x_0, to_x0(output, moved, time, self.schedule, kind) - offset, scale)

        return denoise

    def _reference_input(self, reference: Tensor) -> Tensor:
        """Return what the network is told of the reference."""
        if self.config.reference == "none":
            return torch.zeros_like(reference)
        return self._white(reference)
