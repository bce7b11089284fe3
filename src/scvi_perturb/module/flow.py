"""Flows in the latent, by velocity field or splines, and their configuration."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from scvi.module.base import LossOutput
from torch import Tensor

from scvi_perturb._errors import check_choice
from scvi_perturb.generative.flow import flow_loss, flow_times, line
from scvi_perturb.generative.ode import (
    FlowDensity,
    flow_log_density,
    integrate,
    n_steps_of,
    standard_normal_log_prob,
)
from scvi_perturb.generative.samplers import SOLVERS, solver_of
from scvi_perturb.module.base import Asked
from scvi_perturb.module.generator import GeneratorConfig, LatentGenerator
from scvi_perturb.nn.denoiser import SplineChain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from scvi_perturb._typing import Batch
    from scvi_perturb.generative.coupling import CouplingMethod
    from scvi_perturb.generative.flow import TimeLaw
    from scvi_perturb.generative.ode import Divergence, Field
    from scvi_perturb.generative.samplers import SamplerConfig
    from scvi_perturb.module.base import ConditionTensors

__all__ = ["FlowConfig", "LatentFlow", "LatentSplines"]


@dataclass(frozen=True, slots=True)
class FlowConfig(GeneratorConfig):
    """The velocity field and how it is conditioned.

    Attributes
    ----------
    width, n_blocks, dropout, n_condition, combine, n_neighbours, residual, context_embedding
        See :class:`scvi_perturb.module.GeneratorConfig`.
    condition_dropout, null_fraction, ema_decay
        The same.
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
        GeneratorConfig.__post_init__(self)
        check_choice("source", self.source, ("control", "noise"))
        check_choice("kind", self.kind, ("continuous", "coupling"))
        check_choice("coupling", self.coupling, ("exact", "sinkhorn", "unbalanced", "random"))
        check_choice("times", self.times, ("uniform", "logit-normal"))
        if self.n_transforms < 1 or self.n_bins < 2:
            msg = f"n_transforms={self.n_transforms}, n_bins={self.n_bins}; expected >= 1 and >= 2."
            raise ValueError(msg)
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

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the solvers of flows."""
        return SOLVERS

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

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the solvers of flows."""
        return SOLVERS

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
