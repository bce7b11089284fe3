"""Stage two: what generators in the latent have in common, and the module of both stages."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from scvi_perturb._checks import checked
from scvi_perturb._core import Key
from scvi_perturb.generative.samplers import SAMPLERS
from scvi_perturb.module.autoencoder import ScviRepresentation
from scvi_perturb.module.base import ConditionTensors
from scvi_perturb.nn.layers import ConditionalNetwork
from scvi_perturb.nn.perturbation import AdditiveEffect, PerturbationEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from scvi_perturb._core import Batch
    from scvi_perturb.generative.coupling import CouplingMethod
    from scvi_perturb.generative.samplers import SamplerConfig
    from scvi_perturb.module.autoencoder import CountAutoencoder
    from scvi_perturb.module.base import ConditionBatch
    from scvi_perturb.module.count_diffusion import RawCounts


@checked
@dataclass(frozen=True, slots=True)
class GeneratorConfig:
    """The network and how it is conditioned.

    A kind of generator has its own subclass, which defines :attr:`generator_class` and
    :attr:`reference`.

    Attributes
    ----------
    width, n_blocks, dropout
        Residual MLP.
    n_condition
        Dimension of the embedded condition.
    combine
        How the components of a combination meet: `"sum"`, or `"attention"` before the sum.
    n_neighbours
        From control cells: displacements are averaged over this many pairs with the nearest
        control cells, in the same context and condition. A single optimal-transport partner is
        mostly chance in many dimensions, and a network learns the chance; 1 keeps single pairs.
    residual
        From control cells: share of the difference between a single pair's displacement and the
        average that is kept, so that cells still differ in their response.
    context_embedding
        Whether contexts also have embeddings of their own. The reference describes the
        context, also one never trained on; few contexts are too few to learn more from.
    condition_dropout
        Share of cells whose condition is hidden in training, for guidance.
    null_fraction
        Share of pairs in which a control cell answers itself under no perturbation. This is
        what makes "control in, no effect out" hold.
    ema_decay
        Of the moving average of the weights that samples are drawn with.
    """

    width: int = 128
    n_blocks: int = 2
    dropout: float = 0.0
    n_condition: int = 64
    combine: Literal["sum", "attention"] = "sum"
    n_neighbours: int = 20
    residual: float = 0.3
    context_embedding: bool = False
    condition_dropout: float = 0.1
    null_fraction: float = 0.25
    ema_decay: float = 0.995

    @property
    def generator_class(self) -> type[LatentGenerator]:
        """The generator that a model builds from this configuration."""
        msg = (
            f"{type(self).__name__} names no generator. Use DiffusionConfig or FlowConfig, or "
            "define the property `generator_class`, which returns a subclass of LatentGenerator."
        )
        raise NotImplementedError(msg)

    @property
    def reference(self) -> Literal["cell", "population", "none"]:
        """What is known of the control: a cell, the mean of its population, or nothing."""
        raise NotImplementedError

    @property
    def displaced(self) -> bool:
        """Whether the displacement from the reference is drawn, and not the latent itself."""
        return self.reference == "cell"

    @property
    def matching(self) -> CouplingMethod:
        """How treated cells are matched with control cells."""
        return "exact"


TARGET, TARGET_LOG_VARIANCE = "target_mean", "target_log_variance"
REFERENCE, REFERENCE_LOG_VARIANCE = "reference_mean", "reference_log_variance"
#: Share of training cells whose context is hidden, where contexts have embeddings.
_CONTEXT_DROPOUT = 0.1


class Networks(nn.Module):
    """What is learned, and averaged: encoder of conditions, network, embeddings."""

    #: Arguments of its call depend on the generator.
    network: Any

    def __init__(
        self, encoder: PerturbationEncoder, network: nn.Module, n_contexts: int, n_condition: int
    ) -> None:
        super().__init__()
        self.encoder, self.network = encoder, network
        self.hidden_condition = nn.Parameter(torch.zeros(n_condition))
        self.context = nn.Embedding(n_contexts + 1, n_condition) if n_contexts else None
        if self.context is not None:
            nn.init.zeros_(self.context.weight)

    def with_context(self, condition: Tensor, context: Tensor) -> Tensor:
        """Return embedded conditions with those of their contexts added."""
        return condition if self.context is None else condition + self.context(context)


class TrainingExamples(NamedTuple):
    """A batch as a loss takes it: `n` cells.

    `target`: What is to be drawn, a displacement from the reference or a latent, `(n, n_latent)`.
    `reference`: Latents of the reference cells, as cached, `(n, n_latent)`. `effect`: Additive
    effect of the conditions on the latent, zero where hidden, `(n, n_latent)`. `condition`:
    Embedded conditions, some hidden, `(n, n_condition)`.
    """

    target: Tensor
    reference: Tensor
    effect: Tensor
    condition: Tensor


class LatentGenerator(BaseModuleClass):
    """A distribution in the latent given a condition, a context and a reference.

    A subclass defines its loss (:meth:`loss`) and how it draws (:meth:`sample_latent`).

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
    """

    #: Highest frequency of the embedded time: how fast the network can change in time.
    max_frequency = 400.0

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
        config: GeneratorConfig,
    ) -> None:
        super().__init__()
        self.n_latent, self.config = n_latent, config
        self.n_contexts = n_contexts if config.context_embedding else 0
        encoder = PerturbationEncoder(
            n_identities, features, n_out=config.n_condition, combine=config.combine
        )
        network = self.make_network(n_latent, config)
        self.additive = AdditiveEffect(encoder.n_components, n_latent)
        self.learned = Networks(encoder, network, self.n_contexts, config.n_condition)
        self.average = deepcopy(self.learned).requires_grad_(requires_grad=False)
        self.register_buffer("n_updates", torch.zeros((), dtype=torch.long))
        self._n_updates = 0
        self.register_buffer("latent_shift", torch.zeros(n_latent))
        self.register_buffer("latent_scale", torch.ones(n_latent))
        self.register_buffer("target_shift", torch.zeros(n_latent))
        self.register_buffer("target_scale", torch.ones(n_latent))
        self.register_buffer("seen_context", torch.ones(n_contexts, dtype=torch.bool))
        for name, values in conditions._asdict().items():
            # Not persistent: the registry, saved with the model, holds the table.
            self.register_buffer(f"table_{name}", values, persistent=False)

    # What a subclass defines --------------------------------------------------------------

    def loss(self, tensors: Batch) -> LossOutput:
        """Return the loss of each cell, under the weights of :attr:`networks`."""
        raise NotImplementedError

    def sample_latent(
        self, batch: ConditionBatch, *, sampler: SamplerConfig, generator: torch.Generator | None
    ) -> Tensor:
        """Draw latents of cells under conditions.

        Parameters
        ----------
        batch
            Condition, reference and context of each of `B` cells.
        sampler
            Method, number of evaluations, guidance.
        generator
            Source of randomness, on the module's device.

        Returns
        -------
        Tensor
            `(B, n_latent)`, in stage one's latent space.
        """
        raise NotImplementedError

    def make_network(self, n_latent: int, config: GeneratorConfig) -> nn.Module:
        """Return the network that is learned."""
        return ConditionalNetwork(
            n_latent,
            config.n_condition,
            width=config.width,
            n_blocks=config.n_blocks,
            dropout=config.dropout,
            max_frequency=self.max_frequency,
        )

    # What all generators do ---------------------------------------------------------------

    @property
    def networks(self) -> Networks:
        """The weights that are learned while training, else their moving average."""
        return self.learned if self.training else self.average

    @property
    def table(self) -> ConditionTensors:
        """The conditions of the screen, by code."""
        names = ConditionTensors._fields
        return ConditionTensors(*(getattr(self, f"table_{name}") for name in names))

    @property
    def samplers(self) -> tuple[str, ...]:
        """Names of the samplers that :meth:`sample_latent` takes."""
        return tuple(SAMPLERS)

    @property
    def from_cell(self) -> bool:
        """Whether the displacement from a control cell is what is drawn."""
        return self.config.reference == "cell"

    def prepare(
        self,
        latents: Tensor,
        targets: Tensor,
        *,
        seen: Tensor,
        reference_dose: Tensor,
        target_variance: Tensor | None = None,
    ) -> None:
        """Set the scales, and which components were trained on, from training cells alone.

        Parameters
        ----------
        latents
            Latents of the training cells, `(n_cells, n_latent)`.
        targets
            Displacements less their additive part, or latents, `(n_cells, n_latent)`.
        seen, reference_dose
            See :meth:`scvi_perturb.nn.PerturbationEncoder.prepare`.
        target_variance
            Mean variance of the noise with which targets are drawn, `(n_latent,)`; None for none.
        """
        for values, name in ((latents, "latent"), (targets, "target")):
            getattr(self, f"{name}_shift").copy_(values.mean(0))
            getattr(self, f"{name}_scale").copy_(values.std(0).clamp_min(1e-3))
        if target_variance is not None:
            self.target_scale.copy_((self.target_scale**2 + target_variance).sqrt())
        if self.from_cell:
            self.target_shift.zero_()  # no perturbation is no displacement
        for nets in (self.learned, self.average):
            nets.encoder.prepare(seen.to(self.device), reference_dose.to(self.device))
        self.prepare_network(latents)

    def prepare_network(self, latents: Tensor) -> None:
        """Set buffers of the network from latents of the training cells; nothing by default."""

    def prepare_additive(
        self, vectors: Tensor, reference_dose: Tensor, *, log_ec50: float, log_slope: float
    ) -> None:
        """Fix the additive part of displacements, see :class:`scvi_perturb.nn.AdditiveEffect`."""
        self.additive.vectors.copy_(vectors)
        self.additive.reference_dose.copy_(reference_dose)
        self.additive.log_ec50.fill_(log_ec50)
        self.additive.log_slope.fill_(log_slope)

    def before_steps(self) -> None:
        """Look up once what each step needs: the number of updates, and what moves where."""
        self._n_updates = int(self.n_updates)
        self._moved = list(self.average.parameters()), list(self.learned.parameters())

    def after_step(self) -> None:
        """Move the average towards the present weights."""
        self.n_updates += 1
        n = self._n_updates = self._n_updates + 1
        decay = min(self.config.ema_decay, (1 + n) / (10 + n))
        with torch.no_grad():
            get_ema_multi_avg_fn(decay)(*self._moved, n)

    def forward(
        self, tensors: Batch, loss_kwargs: Mapping[str, object] | None = None
    ) -> tuple[dict, dict, LossOutput]:
        """Return empty outputs and the loss of a batch of cached latents."""
        del loss_kwargs
        return {}, {}, self.loss(tensors)

    # What subclasses are built from -------------------------------------------------------

    def examples(self, tensors: Batch) -> TrainingExamples:
        """Draw targets and references from their posteriors, embed conditions and hide some.

        Targets are less the additive effect, and in units of their spread.
        """
        drawn = self._draw_examples(tensors)
        target = (drawn.target - self.target_shift - drawn.effect) / self.target_scale
        return drawn._replace(target=target)

    def _draw_examples(self, tensors: Batch) -> TrainingExamples:
        """Return examples whose targets are neither centred nor scaled."""
        networks = self.networks
        target, reference, code = self._draw_pairs(tensors)
        hidden = self._draw_hidden(code)
        # All conditions of a small screen, else those of each cell: which of them occur is not
        # asked, for the answer would be waited for.
        small = len(self.table.time) <= len(code)
        rows, place = (self.table, code) if small else (self.table.rows(code), slice(None))
        effect = self.additive_effect(rows)[place] * (~hidden)[:, None]
        condition = networks.encoder(*rows)[place]
        condition = torch.where(hidden[:, None], networks.hidden_condition, condition)
        condition = networks.with_context(condition, self._context_row(tensors[Key.CONTEXT]))
        return TrainingExamples(target, reference, effect, condition)

    def _draw_pairs(self, tensors: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return targets, references and codes of conditions; some pairs made null."""
        target = _draw(tensors[TARGET], tensors[TARGET_LOG_VARIANCE])
        reference = _draw(tensors[REFERENCE], tensors[REFERENCE_LOG_VARIANCE])
        code = tensors[Key.CONDITION]
        if self.from_cell:
            null = torch.rand(len(code), device=code.device) < self.config.null_fraction
            target = target * (~null)[:, None]
            code = torch.where(null, torch.zeros_like(code), code)
        return target, reference, code

    def embed(self, batch: ConditionBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Embed each pair of condition and context that occurs, once.

        Returns
        -------
        tuple
            Embeddings `(n, n_condition)`, the same with the condition hidden, and which of them
            each cell has `(B,)`.
        """
        average, n_known = self.average, self.n_contexts + 1
        pairs = batch.which * n_known + self._context_row(batch.context)
        used, place = torch.unique(pairs, return_inverse=True)
        condition, context = torch.div(used, n_known, rounding_mode="floor"), used % n_known
        embedded = average.encoder(*batch.conditions.rows(condition))
        hidden = average.hidden_condition.expand_as(embedded)
        return average.with_context(embedded, context), average.with_context(hidden, context), place

    def additive_effect(self, conditions: ConditionTensors) -> Tensor:
        """Return the additive effect of conditions on the latent, `(n, n_latent)`."""
        return self.additive(conditions.component, conditions.dose, conditions.mask)

    def standardise(self, latent: Tensor) -> Tensor:
        """Return latents in units of their spread over training cells, about their mean."""
        return (latent - self.latent_shift) / self.latent_scale

    def _draw_hidden(self, code: Tensor) -> Tensor:
        """Choose the cells whose condition is hidden, in training."""
        share = self.config.condition_dropout if self.training else 0.0
        return torch.rand(len(code), device=code.device) < share

    def _context_row(self, context: Tensor) -> Tensor:
        """Map contexts never trained on to the last row; a share of the others too, in training."""
        unknown = (context < 0) | (context >= self.n_contexts)
        if self.n_contexts:
            unknown = unknown | ~self.seen_context[context.clamp(0, self.n_contexts - 1)]
        if self.training and self.n_contexts:
            share = torch.rand(len(context), device=context.device)
            unknown = unknown | (share < _CONTEXT_DROPOUT)
        return torch.where(unknown, torch.full_like(context, self.n_contexts), context)


def _draw(mean: Tensor, log_variance: Tensor) -> Tensor:
    return mean + (0.5 * log_variance).exp() * torch.randn_like(mean)


class TwoStageModule(BaseModuleClass):
    """Hold both stages; each is trained by its own plan, the first then frozen.

    Parameters
    ----------
    representation
        Stage one, see :class:`scvi_perturb.module.Representation`.
    generator
        Stage two, e.g. :class:`scvi_perturb.module.LatentDiffusion`.
    """

    representation: CountAutoencoder | ScviRepresentation | RawCounts
    generator: LatentGenerator

    def __init__(
        self, representation: CountAutoencoder | RawCounts, generator: LatentGenerator
    ) -> None:
        super().__init__()
        self.representation = representation
        self.generator = generator

    def on_load(self, model: Any, **_: object) -> None:  # noqa: ANN401 - a model of scvi-tools
        """Put a trained scVI back as stage one before its weights are loaded."""
        settings = getattr(model, "scvi_settings_", None)
        if settings is not None:
            self.representation = ScviRepresentation(settings)
