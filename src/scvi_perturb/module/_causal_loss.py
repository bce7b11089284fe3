"""The loss of latent groups: evidence bound, heads, independence, invariance, shrinkage."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from scvi.module.base import LossOutput
from torch import Tensor
from torch.nn import functional

from scvi_perturb._constants import BATCH_KEY, CONDITION_KEY, CONTEXT_KEY
from scvi_perturb.generative import hsic, total_correlation
from scvi_perturb.module._causal_groups import Groups, state_divergence
from scvi_perturb.nn import PACE

if TYPE_CHECKING:
    from torch import nn

    from scvi_perturb._typing import Batch
    from scvi_perturb.module._causal import GroupedAutoencoder
    from scvi_perturb.module._representation import CountParameters
    from scvi_perturb.nn import MetadataHead

__all__ = ["causal_loss", "heads_loss", "perturbation_inputs"]


class _Posterior(NamedTuple):
    """Posterior of the latents of a batch by group, and a draw; depth left out."""

    mean: Groups
    log_variance: Groups
    draw: Groups


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
    posterior = _Posterior(*(_learned(module, inference[k]) for k in ("qz_m", "qz_logv", "z")))
    fields, conditions = module.fields(tensors), module.table.rows(tensors[CONDITION_KEY])
    shift = module.shift(conditions, posterior.mean.identity.detach())
    state, responded = state_divergence(
        (posterior.mean.state, posterior.log_variance.state), shift, module.log_odds(conditions)
    )
    divergences = {"state": state}
    for name in ("identity", "technical"):
        mean, log_variance, draw = (getattr(part, name) for part in posterior)
        prior = getattr(module, f"{name}_prior")
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


def _learned(module: GroupedAutoencoder, latent: Tensor) -> Groups:
    groups = module.groups(latent)
    return groups._replace(technical=groups.technical[:, 1:])


def _terms(
    module: GroupedAutoencoder,
    tensors: Batch,
    posterior: _Posterior,
    fields: dict[str, Tensor],
    moved: Tensor,
) -> dict[str, Tensor]:
    """Return the terms beside the evidence bound, each with its weight; those of weight 0 left out.

    `moved` is by how much the state of each cell was shifted.
    """
    config = module.config
    basal = posterior.mean._replace(state=posterior.mean.state - moved)
    terms = {"shrinkage": _shrinkage(module)}
    if config.classification > 0:
        terms["classification"] = config.classification * heads_loss(
            module, module.heads, posterior.draw, fields, tensors[CONDITION_KEY]
        )
    if config.independence_weight > 0 and config.independence != "none":
        terms["independence"] = config.independence_weight * _dependence(
            module, tensors, basal, posterior, moved
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
    draw: Groups,
    fields: dict[str, Tensor],
    condition: Tensor,
) -> Tensor:
    """Return the loss of heads: metadata from their group, the perturbation from the state."""
    total = draw.state.new_zeros(())
    for group in ("identity", "technical"):
        encoder = getattr(module, f"{group}_prior").metadata
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


def perturbation_inputs(groups: Groups) -> Tensor:
    """Return what the perturbation is read from; identity does not learn from it."""
    return torch.cat([groups.state, groups.identity.detach()], dim=1)


def _dependence(
    module: GroupedAutoencoder, tensors: Batch, basal: Groups, posterior: _Posterior, moved: Tensor
) -> Tensor:
    """Return how much the groups depend on each other in a batch, states freed of their shifts."""
    kind = module.config.independence
    if kind == "hsic":
        return hsic(*basal)
    if kind == "adversary":
        return _adversary_loss(module, basal.state, tensors)
    draw = posterior.draw._replace(state=posterior.draw.state - moved)
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
    control = tensors[CONDITION_KEY] == 0
    total = state.new_zeros(())
    for key in (CONTEXT_KEY, BATCH_KEY):
        label = tensors[key]
        for value in torch.unique(label[control]):
            own = state[control & (label == value)]
            n = len(own)
            if n > 1:
                squared = own.sum(0).square().sum() - own.square().sum()
                total = total + squared / (n * (n - 1)) * (n / int(control.sum()))
    return total
