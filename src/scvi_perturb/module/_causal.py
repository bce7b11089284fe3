"""Autoencoder with a latent in three groups: identity, state, technical; operators on state."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from scvi.module.base import BaseModuleClass
from torch import Tensor, nn

from scvi_perturb._constants import (
    BATCH_KEY,
    CONDITION_KEY,
    CONTEXT_KEY,
    LIBRARY_KEY,
    METADATA_PREFIX,
)
from scvi_perturb.module._causal_groups import Groups
from scvi_perturb.module._causal_loss import causal_loss
from scvi_perturb.module._conditions import ConditionTensors
from scvi_perturb.module._count_module import CountModule
from scvi_perturb.nn import (
    PACE,
    CountDecoder,
    ExpressionEncoder,
    GroupPrior,
    MetadataHead,
    MetadataSpec,
    PerturbationOperators,
)

if TYPE_CHECKING:
    from scvi.module.base import LossOutput

    from scvi_perturb._typing import Batch
    from scvi_perturb.module._autoencoder import AutoencoderConfig
    from scvi_perturb.module._causal_config import CausalConfig
    from scvi_perturb.module._causal_design import CausalDesign
    from scvi_perturb.module._representation import CountParameters

__all__ = ["CausalModule", "GroupedAutoencoder"]

#: Log variance of the depth, which is observed.
_SURE = -30.0


class GroupedAutoencoder(CountModule):
    """Encode cells into groups of latents, each with a prior of its own; decode counts.

    Parameters
    ----------
    design
        What the screen holds.
    size
        Networks and likelihood.
    config
        Groups, priors and weights of the loss.
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
        self.likelihood, self.real_values = size.likelihood, design.real_values
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
            sizes = {CONTEXT_KEY: len(design.context_levels), BATCH_KEY: len(design.batch_levels)}
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
        sure = torch.full_like(depth, _SURE)
        return (
            torch.cat([mean[:, :cut], depth, mean[:, cut:]], dim=1),
            torch.cat([log_variance[:, :cut], sure, log_variance[:, cut:]], dim=1),
        )

    def depth(self, tensors: Batch) -> Tensor:
        """Return the standardised logarithm of the library size, `(B,)`; 0 of real values."""
        library = tensors[LIBRARY_KEY]
        if self.real_values:
            return torch.zeros_like(library)
        centre, spread = self.depth_moments
        return (library.clamp_min(1.0).log() - centre) / spread

    def groups(self, latent: Tensor) -> Groups:
        """Return a latent by group."""
        return Groups(*latent.split(self.sizes, dim=1))

    def decode(
        self,
        latent: Tensor,
        library: Tensor,
        batch: Tensor | None = None,
        conditions: ConditionTensors | None = None,
        weight: Tensor | None = None,
    ) -> CountParameters:
        """Return the parameters of the counts.

        Parameters
        ----------
        latent
            `(B, n_latent)`; the depth is not read, the library size says it.
        library
            Library sizes, `(B,)`.
        batch
            Not read: the technical group says it.
        conditions
            Of each cell, for the genes that they edit; None for no such correction.
        weight
            Factor of each component, `(B, m)`, for sums and differences; None for ones.
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

    def fields(self, tensors: Batch) -> dict[str, Tensor]:
        """Return the metadata of cells, column -> values `(B,)`, both groups together."""
        found: dict[str, Tensor] = {}
        for key, levels, group in (
            (CONTEXT_KEY, self.context_levels, "identity"),
            (BATCH_KEY, self.batch_levels, "technical"),
        ):
            code = tensors[key]
            known = code < len(levels)
            rows = levels[code.clamp_max(len(levels) - 1)]
            rows = torch.where(known[:, None], rows, torch.full_like(rows, -1))
            found |= dict(zip(self.columns[group], rows.T, strict=False))
        for name in (*self.columns["identity"], *self.columns["technical"]):
            if name not in found:
                found[name] = tensors[METADATA_PREFIX + name]
        # Numbers are read in double precision, which the networks do not have.
        return {k: v.float() if v.is_floating_point() else v for k, v in found.items()}

    # scvi-tools' contract ------------------------------------------------------------------

    def _get_generative_input(
        self, tensors: Batch, inference_outputs: dict[str, Tensor], **_: object
    ) -> dict[str, Tensor]:
        return {
            "latent": inference_outputs["z"],
            "library": tensors[LIBRARY_KEY],
            "condition": tensors[CONDITION_KEY],
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
