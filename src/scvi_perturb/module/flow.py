"""Flows in the latent, by velocity field or splines, and their configuration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from scvi.module.base import LossOutput
from torch import Tensor

from scvi_perturb._checks import checked
from scvi_perturb.generative.flow import (
    FlowDensity,
    flow_log_density,
    flow_loss,
    integrate,
    standard_normal_log_prob,
    training_times,
)
from scvi_perturb.generative.samplers import SOLVERS, solver_and_steps
from scvi_perturb.module.base import noise_like
from scvi_perturb.module.generator import GeneratorConfig, LatentGenerator
from scvi_perturb.nn.layers import SplineChain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scvi_perturb._core import Batch
    from scvi_perturb.generative.coupling import CouplingMethod
    from scvi_perturb.generative.flow import Divergence, Field, TimeLaw
    from scvi_perturb.generative.samplers import SamplerConfig
    from scvi_perturb.module.base import ConditionBatch


@checked
@dataclass(frozen=True, slots=True)
class FlowConfig(GeneratorConfig):
    """The velocity field and how it is conditioned.

    Attributes besides those of :class:`scvi_perturb.module.GeneratorConfig`:

    Attributes
    ----------
    source
        Where cells start: `"control"`, at a control cell, or `"noise"`, which gives a density.
    kind
        `"continuous"`: an ordinary differential equation. `"coupling"`: a chain of conditional
        spline transforms, from noise only; density and samples in one pass.
    coupling
        How treated cells are matched with control cells of their context and batch: `"exact"` or
        entropic (`"sinkhorn"`) optimal transport, `"unbalanced"` where proportions of
        subpopulations change, or `"random"`.
    times
        Law of the times in training.
    n_transforms, n_bins
        Of `kind="coupling"`: transforms, and bins of their splines.
    """

    source: Literal["control", "noise"] = "control"
    kind: Literal["continuous", "coupling"] = "continuous"
    coupling: CouplingMethod = "exact"
    times: TimeLaw = "uniform"
    n_transforms: int = 6
    n_bins: int = 8

    def __post_init__(self) -> None:
        """Check the choices."""
        if self.kind == "coupling" and self.source != "noise":
            msg = "kind='coupling' has a density and starts from noise; pass source='noise' too."
            raise ValueError(msg)

    @property
    def generator_class(self) -> type[LatentGenerator]:
        """The generator that a model builds from this configuration."""
        return LatentSplines if self.kind == "coupling" else LatentFlow

    @property
    def reference(self) -> Literal["cell", "population", "none"]:
        """What is known of the control: a cell, or the mean of its population."""
        return "cell" if self.source == "control" else "population"

    @property
    def displaced(self) -> bool:
        """What is drawn is always relative to the reference."""
        return True

    @property
    def matching(self) -> CouplingMethod:
        """How treated cells are matched with control cells."""
        return self.coupling


@dataclass(frozen=True, slots=True)
class _MovingFrame:
    """The coordinates that a flow is solved in: `y = (z - origin - t * displacement) / scale`.

    They move with the additive effect, so the network has to learn only what departs from it. A
    translation and a constant scale leave the divergence as it is.
    """

    origin: Tensor
    displacement: Tensor
    scale: Tensor

    def to_frame(self, latent: Tensor, t: float) -> Tensor:
        return (latent - self.origin - t * self.displacement) / self.scale

    def to_latent(self, y: Tensor, t: float) -> Tensor:
        return y * self.scale + self.origin + t * self.displacement


class LatentFlow(LatentGenerator):
    """Transport in the latent by a velocity field, invertible, given condition and context.

    From control cells the field depends on where a cell is, and not on where it came from, so the
    flow can be followed back. From noise the mean of the control population is known, and
    displacements from it are drawn.

    References
    ----------
    Lipman et al. 2023 (flow matching); Tong et al. 2024 (mini-batch optimal transport); Grathwohl
    et al. 2019 (density along a flow).
    """

    config: FlowConfig
    #: Low, so that a few steps follow the field.
    max_frequency = 20.0

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the solvers of flows."""
        return SOLVERS

    def loss(self, tensors: Batch) -> LossOutput:
        """Return the flow-matching loss of each cell."""
        network, examples = self.networks.network, self.examples(tensors)
        target, start = examples.target, self.standardise(examples.reference)
        time = training_times(len(target), self.config.times, device=target.device)
        if self.from_cell:
            # In the frame of the controls: where a cell starts, and how far it is to go.
            source, reference = start, torch.zeros_like(start)
            end = start + target * (self.target_scale / self.latent_scale)
            unit = self.latent_scale / self.target_scale
        else:
            source, reference, end = torch.randn_like(target), start, target
            unit = torch.ones_like(self.target_scale)
        modulation = network.modulation(time, examples.condition)
        velocity = network(torch.lerp(source, end, time[:, None]), reference, modulation)
        loss = flow_loss(velocity, source * unit, end * unit)
        return LossOutput(loss=loss.mean(), reconstruction_loss=loss)

    @torch.inference_mode()
    def sample_latent(
        self, batch: ConditionBatch, *, sampler: SamplerConfig, generator: torch.Generator | None
    ) -> Tensor:
        """Draw latents of cells under conditions, see `LatentGenerator.sample_latent`."""
        start = batch.reference
        if not self.from_cell:
            start = self._frame(batch).to_latent(noise_like(start, generator), 0.0)
        (end,) = self.follow(batch, start, times=(0.0, 1.0), sampler=sampler)
        return end

    @torch.inference_mode()
    def follow(
        self,
        batch: ConditionBatch,
        latent: Tensor,
        *,
        times: Sequence[float],
        sampler: SamplerConfig,
    ) -> Iterator[Tensor]:
        """Carry latents from the first of the times to each of the others, either way.

        `batch`: Condition, reference and context of each cell. `latent`: Where the cells are at the
        first time, `(B, n_latent)`. `times`: 0 is the source, 1 the data. `sampler`: Solver,
        evaluations for a span of one, guidance.

        Yields
        ------
        Tensor
            `(B, n_latent)`, in stage one's latent space.
        """
        frame, (field, _) = self._frame(batch), self._field(batch, sampler.guidance_scale)
        solver, n_steps = solver_and_steps(sampler)
        start = frame.to_frame(latent, times[0])
        path = integrate(field, start, times=times, n_steps=n_steps, solver=solver)
        for t, y in zip(times[1:], path, strict=True):
            yield frame.to_latent(y, t)

    @torch.no_grad()
    def log_density(
        self,
        batch: ConditionBatch,
        latent: Tensor,
        *,
        sampler: SamplerConfig,
        n_probes: int | None,
        generator: torch.Generator | None,
        with_step_error: bool = True,
    ) -> FlowDensity:
        """Return the log-density of latents under their conditions, of flows from noise.

        `batch`, `latent`, `sampler`: As for :meth:`follow`; `latent` at time 1. `n_probes`,
        `generator`, `with_step_error`: See :func:`scvi_perturb.generative.flow_log_density`.
        """
        frame = self._frame(batch)
        solver, n_steps = solver_and_steps(sampler)
        field, divergence = self._field(batch, sampler.guidance_scale)
        found = flow_log_density(
            field,
            frame.to_frame(latent, 1.0),
            n_steps=n_steps,
            solver=solver,
            n_probes=n_probes,
            generator=generator,
            divergence=divergence,
            with_step_error=with_step_error,
        )
        log_density = found.log_density - frame.scale.log().sum()
        return found._replace(log_density=log_density, source=frame.to_latent(found.source, 0.0))

    def _frame(self, batch: ConditionBatch) -> _MovingFrame:
        """Return the coordinates of the cells; only those from control cells move."""
        effect = self.additive_effect(batch.conditions)[batch.which]
        if self.from_cell:
            return _MovingFrame(self.latent_shift, effect, self.latent_scale)
        origin = batch.reference + self.target_shift + effect
        return _MovingFrame(origin, torch.zeros_like(effect), self.target_scale)

    def _field(self, batch: ConditionBatch, guidance_scale: float) -> tuple[Field, Divergence]:
        """Return the velocity in the frame, and of flows from noise with its divergence.

        What does not depend on the positions of the cells is done once.
        """
        net = self.average.network
        embedded, hidden, place = self.embed(batch)
        start = self.standardise(batch.reference)
        reference = torch.zeros_like(start) if self.from_cell else start
        scale = self.latent_scale if self.from_cell else self.target_scale
        unit = self.target_scale / scale
        # The network without the condition does not know the additive effect, so it is evaluated
        # in a frame that does not move.
        offset = self.additive_effect(batch.conditions)[batch.which] / scale

        def inputs(t: float, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            time = torch.full((len(condition),), t, device=x.device, dtype=x.dtype)
            rows = net.modulation(time, condition)
            return x, reference, rows if len(rows) == 1 else rows[place]

        def field(t: float, x: Tensor) -> Tensor:
            velocity = net(*inputs(t, x, embedded)) * unit
            if guidance_scale == 1.0:
                return velocity
            free = net(*inputs(t, x + t * offset, hidden)) * unit - offset
            return torch.lerp(free, velocity, guidance_scale)

        def divergence(_: Field, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
            velocity, trace = net.with_divergence(*inputs(t, x, embedded))
            if guidance_scale == 1.0:
                return velocity, trace
            free, free_trace = net.with_divergence(*inputs(t, x + t * offset, hidden))
            velocity = torch.lerp(free - offset, velocity, guidance_scale)
            return velocity, torch.lerp(free_trace, trace, guidance_scale)

        return field, divergence


class LatentSplines(LatentFlow):
    """A discrete normalising flow of displacements from the mean control, trained by likelihood.

    References
    ----------
    Durkan et al., Neural spline flows, 2019.
    """

    def make_network(self, n_latent: int, config: FlowConfig) -> SplineChain:  # type: ignore[override]
        """Return the chain of splines."""
        return SplineChain(
            n_latent,
            config.n_condition + n_latent,
            n_transforms=config.n_transforms,
            n_bins=config.n_bins,
            width=config.width,
        )

    def loss(self, tensors: Batch) -> LossOutput:
        """Return the negative log-density of each cell, a dimension."""
        target, reference, _, condition = self.examples(tensors)
        inputs = torch.cat([condition, self.standardise(reference)], dim=1)
        noise, volume = self.networks.network.inverse(target, inputs)
        loss = -(standard_normal_log_prob(noise) + volume) / self.n_latent
        return LossOutput(loss=loss.mean(), reconstruction_loss=loss)

    @torch.no_grad()
    def sample_latent(
        self, batch: ConditionBatch, *, sampler: SamplerConfig, generator: torch.Generator | None
    ) -> Tensor:
        """Draw latents of cells under conditions, see `LatentGenerator.sample_latent`."""
        _refuse_guidance(sampler)
        noise = noise_like(batch.reference, generator)
        return self._frame(batch).to_latent(self._from_noise(batch, noise), 1.0)

    @torch.no_grad()
    def follow(
        self,
        batch: ConditionBatch,
        latent: Tensor,
        *,
        times: Sequence[float],
        sampler: SamplerConfig,
    ) -> Iterator[Tensor]:
        """Carry latents to the other end; the chain has no points between its ends.

        Arguments as for `LatentFlow.follow`. At time 0 latents are those of the noise, in the
        coordinates of the data.

        Raises `ValueError`: For times other than 0 and 1.
        """
        _refuse_guidance(sampler)
        if not set(times) <= {0.0, 1.0}:
            msg = "A chain of splines has no points between its ends; ask for the times 0 and 1."
            raise ValueError(msg)
        frame = self._frame(batch)
        for start, end in itertools.pairwise(times):
            y = frame.to_frame(latent, start)
            if end > start:
                latent = frame.to_latent(self._from_noise(batch, y), end)
            elif end < start:
                latent = frame.to_latent(self._to_noise(batch, y)[0], end)
            yield latent

    @torch.no_grad()
    def log_density(
        self,
        batch: ConditionBatch,
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
        frame = self._frame(batch)
        noise, volume = self._to_noise(batch, frame.to_frame(latent, 1.0))
        log_density = standard_normal_log_prob(noise) + volume - frame.scale.log().sum()
        zero = torch.zeros_like(log_density)
        return FlowDensity(log_density, zero, zero, frame.to_latent(noise, 0.0))

    def _draw_hidden(self, code: Tensor) -> Tensor:
        """Hide no condition: there is no guidance that would ask for it."""
        return torch.zeros_like(code, dtype=torch.bool)

    def _inputs(self, batch: ConditionBatch) -> Tensor:
        """Return embedded conditions and standardised references."""
        embedded, _, place = self.embed(batch)
        return torch.cat([embedded[place], self.standardise(batch.reference)], dim=1)

    def _from_noise(self, batch: ConditionBatch, noise: Tensor) -> Tensor:
        return self.average.network(noise, self._inputs(batch))

    def _to_noise(self, batch: ConditionBatch, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.average.network.inverse(y, self._inputs(batch))


def _refuse_guidance(sampler: SamplerConfig) -> None:
    """Raise where a sampler has guidance."""
    if sampler.guidance_scale != 1.0:
        msg = f"guidance_scale={sampler.guidance_scale}: splines have no guidance; leave it at 1."
        raise ValueError(msg)
