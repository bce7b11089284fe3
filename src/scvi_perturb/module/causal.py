"""The grouped autoencoder of `CausalPerturbVAE`: configuration, latent groups, losses."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import torch
from scvi.module.base import BaseModuleClass, LossOutput
from torch import Tensor, nn
from torch.nn import functional

from scvi_perturb._checks import checked
from scvi_perturb._core import METADATA_PREFIX, Key
from scvi_perturb.module.base import ConditionTensors, CountModule
from scvi_perturb.nn.layers import CountDecoder, ExpressionEncoder
from scvi_perturb.nn.metadata import (
    GroupPrior,
    MetadataHead,
    MetadataSpec,
    PriorKind,
    gaussian_kl,
    gaussian_log_prob,
)
from scvi_perturb.nn.operators import PACE, PerturbationOperators

if TYPE_CHECKING:
    from collections.abc import Sequence

    from scvi_perturb._core import Batch
    from scvi_perturb.module.autoencoder import AutoencoderConfig
    from scvi_perturb.module.base import CountParameters

Independence = Literal["hsic", "total_correlation", "adversary", "none"]

#: Fewer points than this give no estimate of dependence.
_FEWEST = 4
#: Points whose distances from all others set the width of a kernel.
_FOR_WIDTH = 32


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class CausalConfig:
    """Latent groups, their priors, and the weights of the terms of the loss.

    The loss is, per cell and in nats, the negative evidence bound plus the terms below; the weight
    of the divergence itself is `max_kl_weight` of the training plan. Penalties of parameters are
    divided by the number of training cells, that of `context_shrinkage` by the number of contexts:
    they are the negative logarithm of a prior.

    Parameters
    ----------
    n_identity, n_state, n_technical
        Dimensions of the groups. To the technical group one more is added, the depth: the
        standardised logarithm of the library size, which is observed. Dimensions that are not
        needed collapse onto their prior.
    prior
        Of identity given its metadata: `"gaussian"`, `"mixture"` or `"flow"` (several kinds of
        cells behind one label).
    n_components
        Gaussians of a mixture.
    responders
        Whether the prior of a perturbed cell's state is a mixture of a shifted and an unshifted
        part: not every cell responds.
    classification
        Weight of the heads that predict each column of metadata from its group, and the
        perturbation from the state.
    independence, independence_weight
        What keeps the groups apart: the kernel criterion of dependence (HSIC), an estimate of their
        total correlation, or an adversary that predicts context and batch from the state; and its
        weight.
    control_invariance
        Weight of the squared mean of the state of the control cells of each context and batch: a
        control is in the basal state wherever it is.
    operator_shrinkage, context_shrinkage, additivity
        Weights of the squared size of the operators, of what identity adds to them, and of the
        terms of pairs: the larger, the more additive are combinations.
    sparsity
        Weight of the sum of absolute entries of the operators.
    free_bits
        Nats that the divergence of each group has for nothing, against collapse.
    metadata_dropout
        Share of metadata taken for missing while training, so that what is missing can be.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    n_identity: int = 10
    n_state: int = 10
    n_technical: int = 4
    prior: PriorKind = "gaussian"
    n_components: int = 8
    responders: bool = True
    classification: float = 5.0
    independence: Independence = "hsic"
    independence_weight: float = 5.0
    control_invariance: float = 5.0
    operator_shrinkage: float = 1.0
    context_shrinkage: float = 10.0
    additivity: float = 10.0
    sparsity: float = 0.0
    free_bits: float = 0.0
    metadata_dropout: float = 0.1

    def __post_init__(self) -> None:
        """Check the values."""
        if self.prior == "flow" and self.n_identity < 2:
            msg = f"n_identity={self.n_identity}; with prior='flow' it must be at least 2."
            raise ValueError(msg)

    @property
    def n_latent(self) -> int:
        """Dimension of all groups, depth included."""
        return self.n_identity + self.n_state + self.n_technical + 1


@dataclass(frozen=True, slots=True)
class CausalDesign:
    """A screen as the module sees it.

    `n_genes`: Genes of the data. `conditions`: Conditions by code. `identity`, `technical`: Columns
    of metadata of each group; first those of contexts and batches. `context_levels`,
    `batch_levels`: Level of each column by code of context and batch, `(n_codes, n_columns)`.
    `n_components`: Number of component ids. `pairs`: Ids of components measured together. `label`:
    Perturbation, whatever its dose and time, of each condition, `(n_conditions,)`. `n_labels`:
    Number of perturbations. `target`: Place among the genes of the gene that each component edits,
    -1 for none, `(n_components,)`. `kind`: Kind of each component, `(n_components,)`.
    `partial_panel`: Whether library sizes count genes that the data do not hold. `is_continuous`:
    Whether the data are real values as they are, and not counts.
    """

    n_genes: int
    conditions: ConditionTensors
    identity: tuple[MetadataSpec, ...]
    technical: tuple[MetadataSpec, ...]
    context_levels: Tensor
    batch_levels: Tensor
    n_components: int
    pairs: tuple[tuple[int, int], ...]
    label: Tensor
    n_labels: int
    target: Tensor
    kind: Tensor
    partial_panel: bool = False
    is_continuous: bool = False


class LatentGroups(NamedTuple):
    """A latent by group, `(n, ...)` each."""

    identity: Tensor
    state: Tensor
    technical: Tensor

    def with_state(self, state: Tensor) -> Tensor:
        """Return the latent with another state, `(n, n_latent)`."""
        return torch.cat([self.identity, state, self.technical], dim=1)


def state_divergence(
    posterior: tuple[Tensor, Tensor], shift: Tensor, responds: Tensor
) -> tuple[Tensor, Tensor]:
    """Return a bound on the divergence of the state from its prior, and who responded.

    The prior of a perturbed cell is `r N(shift, 1) + (1 - r) N(0, 1)`.

    `posterior`: Mean and log variance, `(n, n_state)` each. `shift`: Of the state under the cell's
    condition, `(n, n_state)`; zero for controls. `responds`: Log-odds of responding, `(n,)`;
    infinite where all do. Returns the divergence, nats, and the probability that the cell
    responded, `(n,)` each.

    Reference: Hershey and Olsen, Approximating the Kullback Leibler divergence between Gaussian
    mixture models, 2007 (variational bound).
    """
    unit = torch.zeros_like(shift)
    shifted = gaussian_kl(posterior, (shift, unit))
    certain = torch.isinf(responds)
    odds = torch.where(certain, torch.zeros_like(responds), responds)
    basal = gaussian_kl(posterior, (unit, unit)) - functional.logsigmoid(-odds)
    shifted = shifted - torch.where(certain, torch.zeros_like(odds), functional.logsigmoid(odds))
    basal = torch.where(certain, torch.full_like(basal, torch.inf), basal)
    return -torch.logaddexp(-shifted, -basal), torch.sigmoid(basal - shifted)


class _Posterior(NamedTuple):
    """Posterior of the latents of a batch by group, and a draw; depth left out."""

    mean: LatentGroups
    log_variance: LatentGroups
    draw: LatentGroups


def causal_loss(
    module: GroupedAutoencoder,
    tensors: Batch,
    inference: dict[str, Tensor],
    parameters: CountParameters,
    *,
    kl_weight: Tensor | float,
) -> LossOutput:
    """Return the loss of a batch and its terms, see :class:`CausalConfig`."""
    reconstruction = -module.log_prob(tensors, parameters)
    posterior = _Posterior(*(module.learned_groups(inference[k]) for k in ("qz_m", "qz_logv", "z")))
    fields, conditions = module.fields(tensors), module.table.rows(tensors[Key.CONDITION])
    shift = module.shift(conditions, posterior.mean.identity.detach())
    state, responded = state_divergence(
        (posterior.mean.state, posterior.log_variance.state), shift, module.log_odds(conditions)
    )
    divergences = {"state": state}
    for name in ("identity", "technical"):
        mean, log_variance, draw = (getattr(part, name) for part in posterior)
        prior = module.prior_of(name)
        divergences[name] = prior.divergence((mean, log_variance), draw, fields)
    terms = _terms(module, tensors, posterior, fields, responded.detach()[:, None] * shift)
    free = module.config.free_bits
    charged = [d.mean().clamp_min(free) if free > 0 else d.mean() for d in divergences.values()]
    bound = reconstruction.mean() + kl_weight * torch.stack(charged).sum()
    return LossOutput(
        loss=bound + torch.stack(list(terms.values())).sum(),
        reconstruction_loss=reconstruction,
        kl_local=divergences,
        extra_metrics={name: value.detach() for name, value in terms.items()},
    )


def _terms(
    module: GroupedAutoencoder,
    tensors: Batch,
    posterior: _Posterior,
    fields: dict[str, Tensor],
    shift: Tensor,
) -> dict[str, Tensor]:
    """Return the weighted terms beside the evidence bound; `shift` is that of each cell's state."""
    config = module.config
    basal = posterior.mean._replace(state=posterior.mean.state - shift)
    terms = {"shrinkage": _shrinkage(module)}
    if config.classification > 0:
        terms["classification"] = config.classification * heads_loss(
            module, module.heads, posterior.draw, fields, tensors[Key.CONDITION]
        )
    if config.independence_weight > 0 and config.independence != "none":
        terms["independence"] = config.independence_weight * _dependence(
            module, tensors, basal, posterior, shift
        )
    if config.control_invariance > 0:
        terms["control_invariance"] = config.control_invariance * _control_means(
            posterior.mean.state, tensors
        )
    return terms


def _shrinkage(module: GroupedAutoencoder) -> Tensor:
    """Return the penalties of the operators, of which the data are a sample of `n_cells`."""
    config, sizes = module.config, module.operators.penalties(module.seen)
    own = (PACE * module.responds_own).square().sum() + module.on_target.square().sum()
    total = (
        config.operator_shrinkage * sizes.vectors
        + config.additivity * sizes.pairs
        + config.sparsity * sizes.absolute
        + own
    )
    # What contexts differ in is learned from as many of them, however many cells they have.
    contexts = config.context_shrinkage * sizes.context / len(module.context_levels)
    return total / module.n_cells + contexts


def heads_loss(
    module: GroupedAutoencoder,
    heads: nn.ModuleDict,
    draw: LatentGroups,
    fields: dict[str, Tensor],
    condition: Tensor,
) -> Tensor:
    """Return the loss of heads: metadata from their group, the perturbation from the state."""
    total = draw.state.new_zeros(())
    for group in ("identity", "technical"):
        encoder = module.prior_of(group).metadata
        for i, spec in enumerate(encoder.specs):
            name = f"{group}_{i}"
            if name not in heads:
                continue
            values, present = fields[spec.name], encoder.present(i, fields[spec.name])
            target = encoder.standardised(i, values) if spec.is_numeric else values
            head = cast("MetadataHead", heads[name])
            total = total + head.loss(getattr(draw, group), target, present)
    if "perturbation" in heads:
        label = module.label[condition]
        there = torch.ones_like(label, dtype=torch.bool)
        head = cast("MetadataHead", heads["perturbation"])
        total = total + head.loss(perturbation_inputs(draw), label, there)
    return total


def perturbation_inputs(groups: LatentGroups) -> Tensor:
    """Return what the perturbation is read from; identity does not learn from it."""
    return torch.cat([groups.state, groups.identity.detach()], dim=1)


def _dependence(
    module: GroupedAutoencoder,
    tensors: Batch,
    basal: LatentGroups,
    posterior: _Posterior,
    shift: Tensor,
) -> Tensor:
    """Return how much the groups depend on each other in a batch, states freed of their shifts."""
    kind = module.config.independence
    if kind == "hsic":
        return hsic(*basal)
    if kind == "adversary":
        return _adversary_loss(module, basal.state, tensors)
    draw = posterior.draw._replace(state=posterior.draw.state - shift)
    return total_correlation(basal, posterior.log_variance, draw, n_total=int(module.n_cells))


def _adversary_loss(module: GroupedAutoencoder, state: Tensor, tensors: Batch) -> Tensor:
    """Return the loss of an adversary that tells context and batch from the state.

    Its gradient reaches the state with the opposite sign (Ganin and Lempitsky 2015).
    """
    turned = 2.0 * state.detach() - state
    loss = state.new_zeros(())
    for key, head in module.adversaries.items():
        loss = loss + functional.cross_entropy(head(turned), tensors[key])
    return loss


def _control_means(state: Tensor, tensors: Batch) -> Tensor:
    """Return the squared mean of the state of the controls of each context and batch, unbiased."""
    control = tensors[Key.CONDITION] == 0
    total = state.new_zeros(())
    for key in (Key.CONTEXT, Key.BATCH):
        label = tensors[key]
        for value in torch.unique(label[control]):
            own = state[control & (label == value)]
            n = len(own)
            if n > 1:
                squared = own.sum(0).square().sum() - own.square().sum()
                total = total + squared / (n * (n - 1)) * (n / int(control.sum()))
    return total


#: Log variance of the depth, which is observed.
_OBSERVED_LOG_VARIANCE = -30.0


class GroupedAutoencoder(CountModule):
    """Encode cells into groups of latents, each with a prior of its own; decode counts.

    `design`: What the screen holds. `size`: Networks and likelihood. `config`: LatentGroups, priors
    and weights of the loss.
    """

    profile: Tensor
    depth_moments: Tensor
    n_cells: Tensor
    seen: Tensor
    target: Tensor
    kind: Tensor
    label: Tensor

    def __init__(self, design: CausalDesign, size: AutoencoderConfig, config: CausalConfig) -> None:
        super().__init__()
        self.config, self.n_genes = config, design.n_genes
        self.likelihood, self.is_continuous = size.likelihood, design.is_continuous
        self.n_latent = config.n_latent
        self.sizes = (config.n_identity, config.n_state, config.n_technical + 1)
        self._build_networks(design, size)
        share = config.metadata_dropout
        self.identity_prior = GroupPrior(
            design.identity,
            config.n_identity,
            kind=config.prior,
            n_components=config.n_components,
            dropout=share,
        )
        self.technical_prior = GroupPrior(design.technical, config.n_technical, dropout=share)
        self.operators = PerturbationOperators(
            design.n_components, config.n_state, config.n_identity, design.pairs
        )
        n_ids = self.operators.n_components
        self.responds = nn.Parameter(torch.full((), 2.0 / PACE))
        self.responds_own = nn.Parameter(torch.zeros(n_ids))
        self.on_target_kind = nn.Parameter(torch.zeros(1 + max([0, *design.kind.tolist()])))
        self.on_target = nn.Parameter(torch.zeros(n_ids))
        self._build_heads(design)
        self._register(design, n_ids)

    def _build_networks(self, design: CausalDesign, size: AutoencoderConfig) -> None:
        n_coded = self.n_latent - 1
        # The depth stands beside the genes.
        self.encoder = ExpressionEncoder(
            design.n_genes,
            1,
            n_coded,
            n_hidden=size.n_hidden,
            n_layers=size.n_layers,
            dropout=size.dropout,
            linear=True,
        )
        linear = size.decoder == "linear"
        self.decoder = CountDecoder(
            n_coded,
            design.n_genes,
            0,
            n_hidden=size.n_hidden,
            n_layers=0 if linear else 1,
            n_other=int(design.partial_panel and size.likelihood != "normal"),
            dispersion="gene" if size.likelihood == "poisson" else size.dispersion,
            zero_inflated=size.likelihood == "zinb",
        )
        if not linear:  # starts as its linear part, which is set before training
            self.decoder.add_linear()
            nn.init.zeros_(self.decoder.logits.weight)
        for layer in (self.encoder.mean, self.linear_decoder, self.linear_encoder):
            nn.init.normal_(layer.weight, std=1e-3)

    def _build_heads(self, design: CausalDesign) -> None:
        config = self.config
        sizes = {"identity": config.n_identity, "technical": config.n_technical}
        self.heads = nn.ModuleDict()
        for group, specs in (("identity", design.identity), ("technical", design.technical)):
            for i, spec in enumerate(specs):
                if spec.n_levels != 1:
                    self.heads[f"{group}_{i}"] = MetadataHead(sizes[group], spec)
        if design.n_labels > 1:
            spec = MetadataSpec("perturbation", design.n_labels)
            # What a perturbation does depends on the identity, which is read beside the state.
            self.heads["perturbation"] = MetadataHead(config.n_state + config.n_identity, spec)
        self.adversaries = nn.ModuleDict()
        if config.independence == "adversary":
            sizes = {Key.CONTEXT: len(design.context_levels), Key.BATCH: len(design.batch_levels)}
            for key, n_levels in sizes.items():
                if n_levels > 1:
                    self.adversaries[key] = MetadataHead(
                        config.n_state, MetadataSpec(key, n_levels)
                    )

    def _register(self, design: CausalDesign, n_ids: int) -> None:
        self.columns = {
            "identity": tuple(spec.name for spec in design.identity),
            "technical": tuple(spec.name for spec in design.technical),
        }
        target = torch.full((n_ids,), -1, dtype=torch.long)
        target[: len(design.target)] = design.target
        kind = torch.zeros(n_ids, dtype=torch.long)
        kind[: len(design.kind)] = design.kind
        for name, values in design.conditions._asdict().items():
            # Not persistent: the registry, saved with the model, holds the table.
            self.register_buffer(f"table_{name}", values, persistent=False)
        self.register_buffer("context_levels", design.context_levels, persistent=False)
        self.register_buffer("batch_levels", design.batch_levels, persistent=False)
        self.register_buffer("label", design.label, persistent=False)
        self.register_buffer("target", target, persistent=False)
        self.register_buffer("kind", kind, persistent=False)
        self.register_buffer("seen", torch.zeros(n_ids, dtype=torch.bool))
        self.register_buffer("profile", torch.zeros(design.n_genes))
        self.register_buffer("depth_moments", torch.tensor([0.0, 1.0]))
        self.register_buffer("n_cells", torch.ones(()))

    @property
    def linear_encoder(self) -> nn.Linear:
        """The linear part of the encoder."""
        assert self.encoder.linear is not None
        return self.encoder.linear

    @property
    def linear_decoder(self) -> nn.Linear:
        """The linear part of the decoder: change in log proportion per unit of latent."""
        return self.decoder.logits if self.decoder.linear is None else self.decoder.linear

    def _on_target(
        self, logits: Tensor, conditions: ConditionTensors, weight: Tensor | None
    ) -> Tensor:
        """Return logits with those of the genes that the cell's components edit corrected."""
        component = conditions.component
        gene = self.target[component]
        change = self.on_target_kind[self.kind[component]] + self.on_target[component]
        change = change * (conditions.mask & (gene >= 0))
        if weight is not None:
            change = change * weight
        correction = torch.zeros_like(logits)
        return logits + correction.scatter_add(1, gene.clamp_min(0), change.to(logits.dtype))

    # What is asked of it ------------------------------------------------------------------

    @property
    def table(self) -> ConditionTensors:
        """The conditions of the screen, by code."""
        names = ConditionTensors._fields
        return ConditionTensors(*(getattr(self, f"table_{name}") for name in names))

    def encode(self, tensors: Batch) -> tuple[Tensor, Tensor]:
        """Return mean and log variance of the latent, `(B, n_latent)` each."""
        depth = self.depth(tensors)[:, None]
        inputs = self.transform(tensors) - self.profile
        mean, log_variance = self.encoder(inputs, depth)
        cut = self.sizes[0] + self.sizes[1]
        certain = torch.full_like(depth, _OBSERVED_LOG_VARIANCE)
        return (
            torch.cat([mean[:, :cut], depth, mean[:, cut:]], dim=1),
            torch.cat([log_variance[:, :cut], certain, log_variance[:, cut:]], dim=1),
        )

    def depth(self, tensors: Batch) -> Tensor:
        """Return the standardised logarithm of the library size, `(B,)`; 0 of real values."""
        library = tensors[Key.LIBRARY]
        if self.is_continuous:
            return torch.zeros_like(library)
        centre, spread = self.depth_moments
        return (library.clamp_min(1.0).log() - centre) / spread

    def groups(self, latent: Tensor) -> LatentGroups:
        """Return a latent by group; the technical one begins with the depth."""
        return LatentGroups(*latent.split(self.sizes, dim=1))

    def learned_groups(self, latent: Tensor) -> LatentGroups:
        """Return a latent by group without the depth, which is observed."""
        groups = self.groups(latent)
        return groups._replace(technical=groups.technical[:, 1:])

    def prior_of(self, group: str) -> GroupPrior:
        """Return the prior of the identity or the technical group."""
        return {"identity": self.identity_prior, "technical": self.technical_prior}[group]

    def decode(
        self,
        latent: Tensor,
        library: Tensor,
        batch: Tensor | None = None,
        conditions: ConditionTensors | None = None,
        weight: Tensor | None = None,
    ) -> CountParameters:
        """Return the parameters of the counts.

        `latent`: `(B, n_latent)`; the depth is not read, the library size says it. `library`:
        Library sizes, `(B,)`. `batch`: Not read: the technical group says it. `conditions`: Of each
        cell, for the genes that they edit; None for no such correction. `weight`: Factor of each
        component, `(B, m)`, for sums and differences; None for ones.
        """
        del batch
        cut = self.sizes[0] + self.sizes[1]
        coded = torch.cat([latent[:, :cut], latent[:, cut + 1 :]], dim=1)
        decoded = self.decoder(coded, coded[:, :0])
        if conditions is not None and bool((self.target >= 0).any()):
            decoded = decoded._replace(logits=self._on_target(decoded.logits, conditions, weight))
        return self._count_parameters(decoded, library)

    def shift(
        self, conditions: ConditionTensors, identity: Tensor | None, weight: Tensor | None = None
    ) -> Tensor:
        """Return the shift of the state under conditions, one a cell, `(B, n_state)`."""
        shift: Tensor = self.operators(*conditions, identity=identity, weight=weight)
        return shift

    def log_odds(self, conditions: ConditionTensors) -> Tensor:
        """Return the log-odds that a cell responds, `(B,)`; infinite where all do."""
        own = self.responds_own[conditions.component] * conditions.mask
        odds = PACE * (self.responds + own.sum(1))
        return odds if self.config.responders else torch.full_like(odds, torch.inf)

    def draw_shift(
        self, conditions: ConditionTensors, identity: Tensor, random: torch.Generator
    ) -> Tensor:
        """Return the shift of each cell's state, 0 for those drawn not to respond."""
        odds = self.log_odds(conditions)
        responds = torch.rand(odds.shape, generator=random, device=odds.device) < odds.sigmoid()
        return self.shift(conditions, identity) * responds[:, None]

    def draw_prior(
        self,
        fields: dict[str, Tensor],
        n: int,
        random: torch.Generator,
        *,
        conditions: ConditionTensors | None = None,
    ) -> Tensor:
        """Draw latents given metadata, of mean depth; the state is 0 without conditions."""
        identity = self.identity_prior.draw(fields, n, random)
        technical = self.technical_prior.draw(fields, n, random)
        state = torch.zeros(n, self.sizes[1], device=random.device)
        if conditions is not None:
            basal = torch.randn(state.shape, generator=random, device=random.device)
            state = basal + self.draw_shift(conditions, identity, random)
        depth = torch.zeros(n, 1, device=random.device)
        return torch.cat([identity, state, depth, technical], dim=1)

    def prior_log_prob(
        self, latent: Tensor, fields: dict[str, Tensor], conditions: ConditionTensors
    ) -> Tensor:
        """Return the log-density of latents without the depth under their priors, `(n,)`."""
        own = self.learned_groups(latent)
        total = self.identity_prior.log_prob(own.identity, fields)
        total = total + self.technical_prior.log_prob(own.technical, fields)
        shift, odds = self.shift(conditions, own.identity), self.log_odds(conditions)
        unit = torch.zeros_like(shift)
        responded = gaussian_log_prob(own.state, shift, unit) + functional.logsigmoid(odds)
        # Where all respond the odds are infinite, and the second part is nothing.
        stayed = gaussian_log_prob(own.state, unit, unit) + functional.logsigmoid(-odds)
        return total + torch.logaddexp(responded, stayed)

    def unperturbed(
        self, mean: Tensor, log_variance: Tensor, conditions: ConditionTensors
    ) -> Tensor:
        """Return mean latents whose state is freed of the shift of their condition.

        A cell is freed of as much of the shift as it is likely to have responded.
        """
        own, spread = self.groups(mean), self.groups(log_variance)
        shift, odds = self.shift(conditions, own.identity), self.log_odds(conditions)
        _, responded = state_divergence((own.state, spread.state), shift, odds)
        return own.with_state(own.state - responded[:, None] * shift)

    def fields(self, tensors: Batch) -> dict[str, Tensor]:
        """Return the metadata of cells, column -> values `(B,)`; absent columns are missing."""
        found: dict[str, Tensor] = {}
        for key, levels, group in (
            (Key.CONTEXT, self.context_levels, "identity"),
            (Key.BATCH, self.batch_levels, "technical"),
        ):
            code = tensors[key]
            known = code < len(levels)
            rows = levels[code.clamp_max(len(levels) - 1)]
            rows = torch.where(known[:, None], rows, torch.full_like(rows, -1))
            found |= dict(zip(self.columns[group], rows.T, strict=False))
        like = tensors[Key.CONTEXT]
        for prior in (self.identity_prior, self.technical_prior):
            for spec in prior.metadata.specs:
                if spec.name not in found:
                    missing = torch.full_like(like, -1)
                    if spec.is_numeric:
                        missing = torch.full_like(like, torch.nan, dtype=torch.float32)
                    found[spec.name] = tensors.get(METADATA_PREFIX + spec.name, missing)
        # Numbers are read in double precision, which the networks do not have.
        return {k: v.float() if v.is_floating_point() else v for k, v in found.items()}

    # scvi-tools' contract ------------------------------------------------------------------

    def _get_generative_input(
        self, tensors: Batch, inference_outputs: dict[str, Tensor], **_: object
    ) -> dict[str, Tensor]:
        return {
            "latent": inference_outputs["z"],
            "library": tensors[Key.LIBRARY],
            "condition": tensors[Key.CONDITION],
        }

    def generative(
        self, latent: Tensor, library: Tensor, condition: Tensor
    ) -> dict[str, CountParameters]:
        """Return the parameters of the counts."""
        conditions = self.table.rows(condition)
        return {"px": self.decode(latent, library, conditions=conditions)}

    def loss(
        self,
        tensors: Batch,
        inference_outputs: dict[str, Tensor],
        generative_outputs: dict[str, CountParameters],
        kl_weight: Tensor | float = 1.0,
    ) -> LossOutput:
        """Return the loss and its terms, see :class:`CausalConfig`."""
        return causal_loss(
            self, tensors, inference_outputs, generative_outputs["px"], kl_weight=kl_weight
        )


class CausalModule(BaseModuleClass):
    """The module of a model of latent groups: a representation, and heads fitted to it after.

    Parameters
    ----------
    representation
        The autoencoder.
    """

    def __init__(self, representation: GroupedAutoencoder) -> None:
        super().__init__()
        self.representation = representation
        self.heads = deepcopy(representation.heads)


def hsic(*groups: Tensor) -> Tensor:
    """Return the normalised Hilbert-Schmidt criterion of dependence, summed over pairs of groups.

    Gaussian kernels whose width is the median distance. Of a pair it is 0 if independent (in the
    limit of many points), 1 if each determines the other in the same way.

    `*groups`: Draws of groups of variables of the same cells, `(n, k)` each. Returns a number from
    0 to the number of pairs, 0 for fewer than four points.

    Reference: Gretton et al., Measuring statistical dependence with Hilbert-Schmidt norms, 2005.
    """
    total = groups[0].new_zeros(())
    if len(groups[0]) < _FEWEST:
        return total
    kernels = [_centred_kernel(points) for points in groups]
    for one, two in combinations(kernels, 2):
        total = total + (one * two).mean()
    return total


def _centred_kernel(points: Tensor) -> Tensor:
    """Return a kernel with rows and columns of mean 0, whose mean square is 1."""
    squared = torch.cdist(points, points).square()
    some = squared.detach()[:, :: max(1, len(points) // _FOR_WIDTH)]
    kernel = torch.exp(-squared / some.median().clamp_min(1e-6))
    rows = kernel.mean(0, keepdim=True)
    centred = kernel - rows - rows.T + kernel.mean()
    return centred / centred.square().mean().clamp_min(1e-12).sqrt()


def total_correlation(
    means: Sequence[Tensor],
    log_variances: Sequence[Tensor],
    draws: Sequence[Tensor],
    *,
    n_total: int,
) -> Tensor:
    """Estimate the total correlation of groups of latents of an aggregate posterior, nats.

    `KL(q(z) || prod_g q(z_g))` with both densities estimated from the batch (minibatch-weighted
    sampling); the estimate is biased, its gradient useful.

    `means`, `log_variances`, `draws`: Gaussian posterior and a draw of each group, `(n, k_g)`.
    `n_total`: Number of cells that the batch stands for. Returns a number, 0 for fewer than four
    cells.

    Reference: Chen et al., Isolating sources of disentanglement in variational autoencoders, 2018.
    """
    n = len(draws[0])
    if n < _FEWEST:
        return draws[0].new_zeros(())
    scale = math.log(n * n_total)
    each = []
    for mean, log_variance, draw in zip(means, log_variances, draws, strict=True):
        away = (draw[:, None] - mean[None]).square() / log_variance.exp()[None]
        each.append(-0.5 * (away + log_variance[None] + math.log(2 * math.pi)).sum(-1))
    together = torch.logsumexp(torch.stack(each).sum(0), dim=1) - scale
    apart = sum((torch.logsumexp(one, dim=1) - scale for one in each), torch.zeros_like(together))
    return (together - apart).mean()
