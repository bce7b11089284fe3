"""Stage two: a flow in the latent, from control cells or from noise, both ways."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from scvi.module.base import LossOutput
from torch import Tensor

from scvi_perturb.generative import (
    flow_log_density,
    flow_loss,
    flow_times,
    integrate,
    line,
    n_steps_of,
    solver_of,
)
from scvi_perturb.module._asked import Asked
from scvi_perturb.module._generator import LatentGenerator

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scvi_perturb._typing import Batch
    from scvi_perturb.generative import Divergence, Field, FlowDensity, SamplerConfig
    from scvi_perturb.module._conditions import ConditionTensors
    from scvi_perturb.module._flow_config import FlowConfig

__all__ = ["LatentFlow"]


@dataclass(frozen=True, slots=True)
class _Frame:
    """The coordinates that a flow is solved in: `y = (z - origin - t * move) / scale`.

    They go along with the additive part of the effect, so the network has to tell only what the
    additive part does not. `scale` at the source and at the data is the same: a translation and a
    constant scale leave the divergence as it is.
    """

    origin: Tensor
    move: Tensor
    scale: Tensor

    def enter(self, latent: Tensor, t: float) -> Tensor:
        return (latent - self.origin - t * self.move) / self.scale

    def leave(self, y: Tensor, t: float) -> Tensor:
        return y * self.scale + self.origin + t * self.move


class LatentFlow(LatentGenerator):
    """Transport in the latent by a velocity field, invertible, given condition and context.

    From control cells the field knows where a cell is, and not where it came from: cells that
    meet go on together, and the way back is the way forth. From noise the mean of the control
    population is known, and displacements from it are drawn.

    Parameters
    ----------
    n_latent, conditions, n_identities, features, n_contexts, config
        See :class:`scvi_perturb.module.LatentGenerator`.

    References
    ----------
    Lipman et al. 2023 (flow matching); Tong et al. 2024 (mini-batch optimal transport); Grathwohl
    et al. 2019 (density along a flow).
    """

    config: FlowConfig
    #: Low, so that a few steps follow the field.
    _max_frequency = 20.0

    def loss(self, tensors: Batch) -> LossOutput:
        """Return the flow-matching loss of each cell, under learned weights or their average."""
        nets = self.learned if self.training else self.average
        target, reference, condition = self._examples(nets, tensors)
        white = self._white(reference)
        time = flow_times(len(target), self.config.times, device=target.device)
        if self.from_cell:
            # In the frame of the controls: where a cell starts, and how far it is to go.
            source, given = white, torch.zeros_like(white)
            end = white + target * (self.target_scale / self.latent_scale)
            unit = self.latent_scale / self.target_scale
        else:
            source, given, end = torch.randn_like(target), white, target
            unit = torch.ones_like(self.target_scale)
        modulation = nets.network.modulation(time, condition)
        velocity = nets.network(line(source, end, time), given, modulation)
        loss = flow_loss(velocity, source * unit, end * unit)
        return LossOutput(loss=loss.mean(), reconstruction_loss=loss)

    # Ways through the flow ----------------------------------------------------------------

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
        asked = Asked(conditions, which, reference, context)
        start = reference
        if not self.from_cell:
            noise = torch.randn(
                reference.shape, generator=generator, device=reference.device,
                dtype=reference.dtype,
            )  # fmt: skip
            start = self._frame(asked).leave(noise, 0.0)
        (end,) = self.follow(asked, start, times=(0.0, 1.0), sampler=sampler)
        return end

    @torch.inference_mode()
    def follow(
        self, asked: Asked, latent: Tensor, *, times: Sequence[float], sampler: SamplerConfig
    ) -> Iterator[Tensor]:
        """Carry latents from the first of the times to each of the others, either way.

        Parameters
        ----------
        asked
            Condition, reference and context of each cell.
        latent
            Where the cells are at the first time, `(B, n_latent)`.
        times
            0 is the source, 1 the data.
        sampler
            Solver, evaluations for a span of one, guidance.

        Yields
        ------
        Tensor
            `(B, n_latent)`, in stage one's latent space.
        """
        frame, (field, _) = self._frame(asked), self._field(asked, sampler.guidance_scale)
        solver = solver_of(sampler)
        path = integrate(
            field,
            frame.enter(latent, times[0]),
            times=times,
            n_steps=n_steps_of(sampler.n_evaluations, solver),
            solver=solver,
        )
        for t, y in zip(times[1:], path, strict=True):
            yield frame.leave(y, t)

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
        """Return the log-density of latents under their conditions, of flows from noise.

        Parameters
        ----------
        asked, latent, sampler
            As for :meth:`follow`; `latent` at time 1.
        n_probes, generator, with_step_error
            See :func:`scvi_perturb.generative.flow_log_density`.
        """
        frame = self._frame(asked)
        solver = solver_of(sampler)
        field, divergence = self._field(asked, sampler.guidance_scale)
        found = flow_log_density(
            field,
            frame.enter(latent, 1.0),
            n_steps=n_steps_of(sampler.n_evaluations, solver),
            solver=solver,
            n_probes=n_probes,
            generator=generator,
            divergence=divergence,
            with_step_error=with_step_error,
        )
        volume = frame.scale.log().sum()
        source = frame.leave(found.source, 0.0)
        return found._replace(log_density=found.log_density - volume, source=source)

    # Pieces -------------------------------------------------------------------------------

    def _frame(self, asked: Asked) -> _Frame:
        centre = self._centre(asked.conditions)[asked.which]
        if self.from_cell:
            return _Frame(self.latent_shift, centre, self.latent_scale)
        origin = asked.reference + self.target_shift + centre
        return _Frame(origin, torch.zeros_like(centre), self.target_scale)

    def _field(self, asked: Asked, guidance_scale: float) -> tuple[Field, Divergence]:
        """Return the velocity in the frame; what does not depend on the cells is done once.

        And, of flows from noise, the velocity with its divergence.
        """
        nets = self.average
        embedded, hidden, place = self._embedded(asked.conditions, asked.which, asked.context)
        white = self._white(asked.reference)
        given = torch.zeros_like(white) if self.from_cell else white
        unit = self.target_scale / (self.latent_scale if self.from_cell else self.target_scale)
        centre = self._centre(asked.conditions)[asked.which]
        # The network without the condition does not know the additive part: it is asked, and
        # answers, in a frame that does not go along.
        offset = centre / (self.latent_scale if self.from_cell else self.target_scale)

        def network(t: float, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            time = torch.full((len(condition),), t, device=x.device, dtype=x.dtype)
            rows = nets.network.modulation(time, condition)
            return x, given, rows if len(rows) == 1 else rows[place]

        def field(t: float, x: Tensor) -> Tensor:
            velocity = nets.network(*network(t, x, embedded)) * unit
            if guidance_scale == 1.0:
                return velocity
            free = nets.network(*network(t, x + t * offset, hidden)) * unit - offset
            return torch.lerp(free, velocity, guidance_scale)

        def divergence(_: Field, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
            velocity, trace = nets.network.with_divergence(*network(t, x, embedded))
            if guidance_scale == 1.0:
                return velocity, trace
            free, other = nets.network.with_divergence(*network(t, x + t * offset, hidden))
            velocity = torch.lerp(free - offset, velocity, guidance_scale)
            return velocity, torch.lerp(other, trace, guidance_scale)

        return field, divergence
