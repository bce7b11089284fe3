"""Stage two: denoising diffusion in the whitened latent, given a condition and a control cell."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn

from scvi_perturb._constants import CONDITION_KEY, CONTEXT_KEY
from scvi_perturb.generative import (
    SAMPLERS,
    SamplerConfig,
    add_noise,
    denoising_loss,
    get_schedule,
    guide,
    to_x0,
)
from scvi_perturb.module._diffusion_config import ConditionTensors
from scvi_perturb.nn import AdditiveEffect, ConditionalNetwork, PerturbationEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from scvi_perturb._typing import Batch
    from scvi_perturb.module._diffusion_config import DiffusionConfig

__all__ = ["LatentDiffusion"]

TARGET, TARGET_LOG_VARIANCE = "target_mean", "target_log_variance"
REFERENCE, REFERENCE_LOG_VARIANCE = "reference_mean", "reference_log_variance"


class _Networks(nn.Module):
    """What is learned, and averaged: encoder of conditions, denoiser, embeddings."""

    def __init__(
        self,
        encoder: PerturbationEncoder,
        network: ConditionalNetwork,
        n_contexts: int,
        n_condition: int,
    ) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network
        self.hidden_condition = nn.Parameter(torch.zeros(n_condition))
        self.context = nn.Embedding(n_contexts + 1, n_condition) if n_contexts else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)


class LatentDiffusion(BaseModuleClass):
    """p(latent | condition, context, control cell) by denoising.

    Parameters
    ----------
    n_latent
        Dimension of stage one's latent.
    conditions
        The conditions of the screen, by code.
    n_identities
        Number of components with an identity embedding.
    features
        Modality -> values and mask, one row a component; empty if there are none.
    n_contexts
        Number of contexts of the screen.
    config
        Network and conditioning.

    References
    ----------
    Ho et al. 2020 (denoising diffusion); Song et al. 2021 (score SDE); Salimans and Ho 2022
    (v-prediction); Nichol and Dhariwal 2021 (cosine schedule); Ho and Salimans 2022 (guidance).
    """

    latent_shift: Tensor
    latent_scale: Tensor
    target_shift: Tensor
    target_scale: Tensor

    def __init__(
        self,
        n_latent: int,
        conditions: ConditionTensors,
        *,
        n_identities: int,
        features: Mapping[str, tuple[Tensor, Tensor]],
        n_contexts: int,
        config: DiffusionConfig,
    ) -> None:
        super().__init__()
        self.n_latent, self.config = n_latent, config
        self.n_contexts = n_contexts if config.context_embedding else 0
        self.schedule = get_schedule(config.schedule)
        encoder = PerturbationEncoder(
            n_identities, features, n_out=config.n_condition, combine=config.combine
        )
        network = ConditionalNetwork(
            n_latent,
            config.n_condition,
            width=config.width,
            n_blocks=config.n_blocks,
            dropout=config.dropout,
        )
        self.additive = AdditiveEffect(encoder.n_components, n_latent)
        self.learned = _Networks(encoder, network, self.n_contexts, config.n_condition)
        self.average = deepcopy(self.learned).requires_grad_(requires_grad=False)
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))
        self.register_buffer("latent_shift", torch.zeros(n_latent))
        self.register_buffer("latent_scale", torch.ones(n_latent))
        self.register_buffer("target_shift", torch.zeros(n_latent))
        self.register_buffer("target_scale", torch.ones(n_latent))
        self.register_buffer("seen_context", torch.ones(n_contexts, dtype=torch.bool))
        for name, values in conditions._asdict().items():
            # Not persistent: the registry, saved with the model, holds the table.
            self.register_buffer(f"table_{name}", values, persistent=False)

    @property
    def table(self) -> ConditionTensors:
        """The conditions of the screen, by code."""
        names = ConditionTensors._fields
        return ConditionTensors(*(getattr(self, f"table_{name}") for name in names))

    @property
    def from_cell(self) -> bool:
        """Whether the displacement from a control cell is what is drawn."""
        return self.config.reference == "cell"

    def prepare(
        self, latents: Tensor, targets: Tensor, *, seen: Tensor, reference_dose: Tensor
    ) -> None:
        """Fix the scales and what is known of components, from training cells alone.

        Parameters
        ----------
        latents
            Latents of the training cells, `(n_cells, n_latent)`.
        targets
            What is left to be drawn: displacements less their additive part, or latents,
            `(n_cells, n_latent)`.
        seen, reference_dose
            See :meth:`scvi_perturb.nn.PerturbationEncoder.prepare`.
        """
        for values, name in ((latents, "latent"), (targets, "target")):
            getattr(self, f"{name}_shift").copy_(values.mean(0))
            getattr(self, f"{name}_scale").copy_(values.std(0).clamp_min(1e-3))
        if self.from_cell:
            self.target_shift.zero_()  # no perturbation is no displacement
        for nets in (self.learned, self.average):
            nets.encoder.prepare(seen.to(self.device), reference_dose.to(self.device))

    def prepare_additive(
        self, vectors: Tensor, reference_dose: Tensor, *, log_ec50: float, log_slope: float
    ) -> None:
        """Fix the additive part of displacements, see :class:`scvi_perturb.nn.AdditiveEffect`."""
        self.additive.vectors.copy_(vectors)
        self.additive.reference_dose.copy_(reference_dose)
        self.additive.log_ec50.fill_(log_ec50)
        self.additive.log_slope.fill_(log_slope)

    def after_step(self) -> None:
        """Move the average towards the present weights."""
        self.n_updates += 1
        n = int(self.n_updates)
        decay = min(self.config.ema_decay, (1 + n) / (10 + n))
        with torch.no_grad():
            average: list[Tensor] = list(self.average.parameters())
            learned: list[Tensor] = list(self.learned.parameters())
            torch._foreach_lerp_(average, learned, 1 - decay)

    def forward(
        self, tensors: Batch, loss_kwargs: Mapping[str, object] | None = None
    ) -> tuple[dict, dict, LossOutput]:
        """Return empty outputs and the loss of a batch of cached latents."""
        del loss_kwargs
        return {}, {}, self.loss(tensors)

    def loss(self, tensors: Batch) -> LossOutput:
        """Return the denoising loss of each cell, under weights being learned or their average."""
        nets = self.learned if self.training else self.average
        target, reference, code = self._pair(tensors)
        hidden = self._hidden(code)
        used, place = torch.unique(code, return_inverse=True)
        rows = self.table.rows(used)
        target = self._scaled(target, self._centre(rows)[place] * (~hidden)[:, None])
        condition = nets.encoder(*rows)[place]
        condition = torch.where(hidden[:, None], nets.hidden_condition, condition)
        condition = self._with_context(nets, condition, self._known(tensors[CONTEXT_KEY]))
        n = len(target)
        # Stratified times: the same law, less noise in the loss.
        time = (torch.randperm(n, device=target.device) + torch.rand(n, device=target.device)) / n
        noise = torch.randn_like(target)
        noised = add_noise(target, noise, time, self.schedule)
        prediction = nets.network(noised, reference, nets.network.modulation(time, condition))
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
        """Draw latents of cells under conditions, all conditions in one batch.

        Parameters
        ----------
        conditions
            The different conditions asked for, `n` of them.
        which
            Condition of each cell, `(B,)`, in `0..n-1`.
        reference
            Latent of each cell's reference, `(B, n_latent)`.
        context
            Context code of each cell, `(B,)`; codes never trained on count as unknown.
        sampler
            Method, number of evaluations, guidance.
        generator
            Source of randomness, on the module's device.

        Returns
        -------
        Tensor
            `(B, n_latent)`, in stage one's latent space.
        """
        centre = self._centre(conditions)[which]
        offset = centre / self.target_scale
        denoise = self._denoiser(
            conditions, which, self._white(reference), context, (sampler.guidance_scale, offset)
        )
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
        n_known = self.n_contexts + 1
        pairs = which * n_known + self._known(context)
        used, place = torch.unique(pairs, return_inverse=True)
        chosen, own = torch.div(used, n_known, rounding_mode="floor"), used % n_known
        embedded = self._with_context(nets, nets.encoder(*conditions.rows(chosen)), own)
        hidden = self._with_context(nets, nets.hidden_condition.expand_as(embedded), own)

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

    def _pair(self, tensors: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return target, whitened reference and code; some pairs made null."""
        target = _draw(tensors[TARGET], tensors[TARGET_LOG_VARIANCE])
        reference = _draw(tensors[REFERENCE], tensors[REFERENCE_LOG_VARIANCE])
        code = tensors[CONDITION_KEY]
        if self.from_cell:
            null = torch.rand(len(code), device=code.device) < self.config.null_fraction
            target = target * (~null)[:, None]
            code = torch.where(null, torch.zeros_like(code), code)
        return target, self._white(reference), code

    def _centre(self, conditions: ConditionTensors) -> Tensor:
        """Return the additive part of what is drawn under conditions, `(n, n_latent)`."""
        return self.additive(conditions.component, conditions.dose, conditions.mask)

    def _scaled(self, target: Tensor, centre: Tensor) -> Tensor:
        return (target - self.target_shift - centre) / self.target_scale

    def _hidden(self, code: Tensor) -> Tensor:
        """Choose the cells whose condition is hidden, in training."""
        share = self.config.condition_dropout if self.training else 0.0
        return torch.rand(len(code), device=code.device) < share

    def _white(self, latent: Tensor) -> Tensor:
        if self.config.reference == "none":
            return torch.zeros_like(latent)
        return (latent - self.latent_shift) / self.latent_scale

    def _known(self, context: Tensor) -> Tensor:
        """Map contexts never trained on to the last row; a share of the others too, in training."""
        unknown = (context < 0) | (context >= self.n_contexts)
        if self.n_contexts:
            unknown = unknown | ~self.seen_context[context.clamp(0, self.n_contexts - 1)]
        if self.training and self.n_contexts:
            unknown = unknown | (torch.rand(len(context), device=context.device) < 0.1)
        return torch.where(unknown, torch.full_like(context, self.n_contexts), context)

    @staticmethod
    def _with_context(nets: _Networks, condition: Tensor, context: Tensor) -> Tensor:
        return condition if nets.context is None else condition + nets.context(context)


def _draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
