"""Diffusion in the latent, and its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from scvi.module.base import LossOutput

from scvi_perturb._checks import checked
from scvi_perturb.generative.diffusion import add_noise, denoising_loss, to_x0
from scvi_perturb.generative.flow import training_times
from scvi_perturb.generative.samplers import SAMPLERS, get_schedule
from scvi_perturb.module.base import noise_like
from scvi_perturb.module.generator import GeneratorConfig, LatentGenerator

if TYPE_CHECKING:
    from torch import Tensor

    from scvi_perturb._core import Batch
    from scvi_perturb.generative.discrete import Transition
    from scvi_perturb.generative.samplers import Denoiser, SamplerConfig, Schedule
    from scvi_perturb.module.base import ConditionBatch


@checked
@dataclass(frozen=True, slots=True)
class DiffusionConfig(GeneratorConfig):
    """The denoiser and how it is conditioned.

    Attributes besides those of :class:`scvi_perturb.module.GeneratorConfig`:

    Attributes
    ----------
    reference
        What is known of the control. `"cell"`: each cell starts from a control cell, and the
        displacement from there is what is drawn. `"population"`: the mean of the control
        population is known, and the latent itself is drawn. `"none"`: nothing is known.
    schedule, parameterisation
        Noise schedule, and what the network predicts.
    min_snr_gamma
        Limit of the loss weight (Hang et al. 2023); None weighs all times alike.
    n_bins, transition
        Of `space="counts"`: bins of counts, and whether noise is an absorbing mask or a bin drawn
        uniformly (`"absorbing"`, `"uniform"`).
    n_loss_genes
        Of `space="counts"`: genes that the loss of a step of training is of, drawn anew each step;
        None for all, at a cost that grows with them.
    """

    reference: Literal["cell", "population", "none"] = "cell"
    schedule: Literal["cosine", "linear"] = "cosine"
    parameterisation: Literal["v", "eps", "x0"] = "v"
    min_snr_gamma: float | None = 5.0
    n_bins: int = 24
    transition: Transition = "absorbing"
    n_loss_genes: int | None = 512

    @property
    def generator_class(self) -> type[LatentGenerator]:
        """The generator that a model builds from this configuration."""
        return LatentDiffusion


class LatentDiffusion(LatentGenerator):
    """p(latent | condition, context, control cell) by denoising.

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
        """Return the denoising loss of each cell."""
        network, examples = self.networks.network, self.examples(tensors)
        target = examples.target
        time = training_times(len(target), device=target.device)
        noise = torch.randn_like(target)
        noised = add_noise(target, noise, time, self.schedule)
        modulation = network.modulation(time, examples.condition)
        prediction = network(noised, self._reference_input(examples.reference), modulation)
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
        self, batch: ConditionBatch, *, sampler: SamplerConfig, generator: torch.Generator | None
    ) -> Tensor:
        """Draw latents of cells under conditions, see `LatentGenerator.sample_latent`."""
        effect = self.additive_effect(batch.conditions)[batch.which]
        denoise = self._denoiser(batch, effect / self.target_scale, sampler.guidance_scale)
        scaled = SAMPLERS[sampler.method](
            denoise,
            noise_like(batch.reference, generator),
            self.schedule,
            n_evaluations=sampler.n_evaluations,
            generator=generator,
        )
        drawn = scaled * self.target_scale + self.target_shift + effect
        return batch.reference + drawn if self.from_cell else drawn

    def _denoiser(self, batch: ConditionBatch, effect: Tensor, guidance_scale: float) -> Denoiser:
        """Return `(x_t, t) -> x_0`, with all that does not depend on the noise done once.

        The network without the condition does not know `effect`, the scaled additive effect, so
        it is evaluated without it.
        """
        network, kind = self.average.network, self.config.parameterisation
        reference = self._reference_input(batch.reference)
        embedded, hidden, place = self.embed(batch)

        def predict(x_t: Tensor, time: Tensor, condition: Tensor) -> Tensor:
            rows = network.modulation(time.expand(len(condition)), condition)
            output = network(x_t, reference, rows if len(rows) == 1 else rows[place])
            return to_x0(output, x_t, time, self.schedule, kind)

        def denoise(x_t: Tensor, t: float) -> Tensor:
            time = torch.full((1,), t, device=x_t.device, dtype=x_t.dtype)
            x_0 = predict(x_t, time, embedded)
            if guidance_scale == 1.0:
                return x_0
            free = predict(x_t + self.schedule.alpha(time) * effect, time, hidden) - effect
            return torch.lerp(free, x_0, guidance_scale)

        return denoise

    def _reference_input(self, reference: Tensor) -> Tensor:
        """Return the standardised reference, or zeros where none is known."""
        if self.config.reference == "none":
            return torch.zeros_like(reference)
        return self.standardise(reference)
