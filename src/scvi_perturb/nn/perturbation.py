"""Embed perturbations from identity, dose, time and features."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from scvi_perturb.nn.layers import TimeEmbedding

if TYPE_CHECKING:
    from collections.abc import Mapping

_SOFTPLUS_ONE: Final = math.log(math.e - 1)  # where softplus is one


class PerturbationEncoder(nn.Module):
    """Embed conditions: identity and features -> component vectors -> dose -> sum or attention.

    A component's vector is a gated sum of its identity embedding and of one projection per
    feature modality. While training, the identity is dropped now and then, so that the
    features must carry what they can; a component that was never trained on has no identity
    and is described by its features alone. The dose multiplies the vector by a monotone,
    saturating factor which is 1 at the component's reference dose. The control is the zero
    vector; a combination is the sum of its parts.

    Parameters
    ----------
    n_identities
        Number of components with an identity embedding; they have the ids `0..n_identities-1`.
        Ids from there on are known by features alone.
    features
        Modality -> `(values (n_components, d), present (n_components,))`, for all components.
    n_out
        Dimension of the embedding.
    combine
        `"sum"`, or `"attention"` between the components of a combination before the sum.
    identity_dropout, modality_dropout
        Probabilities while training; used only where features can carry the component.
    """

    seen: Tensor
    reference_dose: Tensor

    def __init__(
        self,
        n_identities: int,
        features: Mapping[str, tuple[Tensor, Tensor]],
        *,
        n_out: int = 64,
        combine: Literal["sum", "attention"] = "sum",
        identity_dropout: float = 0.3,
        modality_dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_identities = max(n_identities, 1)
        self.identity_dropout = identity_dropout
        self.modality_dropout = modality_dropout
        self.identity = nn.Embedding(self.n_identities, n_out)
        nn.init.normal_(self.identity.weight, std=n_out**-0.5)
        self.modalities = tuple(features)
        self.projections = nn.ModuleDict()
        n_components = self.n_identities
        for name, (values, present) in features.items():
            # Not persistent: the store is saved with the model's arguments already.
            self.register_buffer(f"features_{name}", values.float(), persistent=False)
            self.register_buffer(f"present_{name}", present.float(), persistent=False)
            self.register_buffer(f"shift_{name}", torch.zeros(values.shape[1]))
            self.register_buffer(f"scale_{name}", torch.ones(values.shape[1]))
            self.projections[name] = nn.Linear(values.shape[1], n_out, bias=False)
            n_components = max(n_components, len(values))
        self.gates = nn.Parameter(torch.full((1 + len(self.modalities),), _SOFTPLUS_ONE))
        self.n_components = n_components
        # Which components were trained on, and the dose at which their factor is one.
        self.register_buffer("seen", torch.ones(n_components, dtype=torch.bool))
        self.register_buffer("reference_dose", torch.ones(n_components))
        # Dose response d^h / (d^h + k^h), per component around a shared curve.
        self.log_ec50 = nn.Parameter(torch.zeros(1))
        self.log_slope = nn.Parameter(torch.zeros(1))
        self.component_ec50 = nn.Embedding(self.n_identities, 1)
        nn.init.zeros_(self.component_ec50.weight)
        self.time = TimeEmbedding(n_out, max_frequency=20.0)
        self.attention = (
            nn.MultiheadAttention(n_out, 4, batch_first=True) if combine == "attention" else None
        )

    def prepare(self, seen: Tensor, reference_dose: Tensor) -> None:
        """Tell which components the training cells have, before training.

        A component that is held out has no usable identity, and must not be taken for known;
        features are centred and scaled by the components trained on alone.

        `seen`: Whether each component is trained on, `(n_components,)`. `reference_dose`: Dose of
        each component at which its factor is one, `(n_components,)`.
        """
        self.seen.copy_(seen)
        self.reference_dose.copy_(reference_dose)
        for name in self.modalities:
            values, present = getattr(self, f"features_{name}"), getattr(self, f"present_{name}")
            shift, scale = _standardisation(values[seen & (present > 0)])
            getattr(self, f"shift_{name}").copy_(shift)
            getattr(self, f"scale_{name}").copy_(scale)

    def forward(self, component: Tensor, dose: Tensor, mask: Tensor, time: Tensor) -> Tensor:
        """Embed conditions.

        `component`, `dose`, `mask`: Ids, doses and which of them are there, each `(n, m)`. `time`:
        Hours, `(n,)`; NaN where not recorded. Returns `(n, n_out)`; zeros for the control without a
        time.
        """
        vectors = self.component_vectors(component) * self.dose_factor(component, dose)[..., None]
        weight = mask[..., None].to(vectors.dtype)
        if self.attention is not None:
            vectors = vectors + self._interact(vectors, mask)
        total = (vectors * weight).sum(dim=1)
        known = torch.isfinite(time)
        hours = torch.log1p(torch.where(known, time, torch.zeros_like(time)))
        return total + self.time(hours) * known[:, None].to(total.dtype)

    def component_vectors(self, component: Tensor) -> Tensor:
        """Vectors of components at their reference dose: ids of any shape `s` -> `(*s, n_out)`."""
        identity = self.identity(component.clamp_max(self.n_identities - 1))
        present = self._has_identity(component).to(identity.dtype)
        others = [self._modality(name, component) for name in self.modalities]
        kept = [there for _, there in others]
        if self.training and len(others) > 1:
            kept = [t * (torch.rand_like(t) >= self.modality_dropout) for t in kept]
        if self.training and others:
            # Only where a modality is left: a component without any would pass for the control.
            covered = torch.stack(kept).sum(0) > 0
            drop = torch.rand_like(present) < self.identity_dropout
            present = present * (~(drop & covered)).to(present.dtype)
        gates = functional.softplus(self.gates)
        total = gates[0] * identity * present[..., None]
        for gate, (vector, _), keep in zip(gates[1:], others, kept, strict=True):
            total = total + gate * vector * keep[..., None]
        return total

    def dose_factor(self, component: Tensor, dose: Tensor) -> Tensor:
        """Return the Hill factor of each component, 1 at its reference dose, `(n, m)`."""
        relative = (dose / self.reference_dose[component]).clamp_min(1e-12).log()
        own = self.component_ec50(component.clamp_max(self.n_identities - 1))[..., 0]
        own = torch.where(self._has_identity(component), own, torch.zeros_like(own))
        return hill_factor(relative, self.log_ec50 + own, self.log_slope)

    def _has_identity(self, component: Tensor) -> Tensor:
        return (component < self.n_identities) & self.seen[component]

    def _modality(self, name: str, component: Tensor) -> tuple[Tensor, Tensor]:
        values, present = getattr(self, f"features_{name}"), getattr(self, f"present_{name}")
        shift, scale = getattr(self, f"shift_{name}"), getattr(self, f"scale_{name}")
        scaled = ((values[component] - shift) / scale).clamp(-5, 5)
        return self.projections[name](scaled), present[component]

    def _interact(self, vectors: Tensor, mask: Tensor) -> Tensor:
        """Return what the components of combinations tell each other; of others nothing."""
        if self.attention is None or mask.shape[1] == 1:
            return torch.zeros_like(vectors)
        several = (mask.sum(1) > 1)[:, None]
        # A row without any component would have no weights; it is not used.
        ignored = ~mask & several
        mixed, _ = self.attention(
            vectors, vectors, vectors, key_padding_mask=ignored, need_weights=False
        )
        return torch.where(several[..., None], mixed, torch.zeros_like(mixed))


def _standardisation(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return shift and scale of each column of `rows (n, d)`.

    The scale also divides by the root of the number of varying columns, so that a component's
    features have a norm of about one, whatever their number; constant columns vanish.
    """
    if len(rows) < 2:
        return torch.zeros(rows.shape[1]), torch.ones(rows.shape[1])
    spread = rows.std(0)
    varying = spread > 1e-6
    scale = torch.where(varying, spread, torch.full_like(spread, torch.inf))
    return rows.mean(0), scale * max(int(varying.sum()), 1) ** 0.5


class AdditiveEffect(nn.Module):
    """Sum over the components of a condition of a dose factor times a vector.

    The vectors are not learned by gradient but by a regression on conditions, see
    `scvi_perturb.model.base.training`. A network adds what departs from the sum, so that where it
    was not trained, components add.

    Parameters
    ----------
    n_components
        Number of component ids.
    n_out
        Dimension of the vectors.
    """

    vectors: Tensor
    reference_dose: Tensor
    log_ec50: Tensor
    log_slope: Tensor

    def __init__(self, n_components: int, n_out: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(max(n_components, 1), n_out))
        self.register_buffer("reference_dose", torch.ones(max(n_components, 1)))
        self.register_buffer("log_ec50", torch.zeros(()))
        self.register_buffer("log_slope", torch.zeros(()))

    def dose_factor(self, component: Tensor, dose: Tensor) -> Tensor:
        """Return `r^h / (r^h + k^h) * (1 + k^h)` of the relative dose r, 1 at r = 1: `(n, m)`."""
        relative = (dose / self.reference_dose[component]).clamp_min(1e-12).log()
        return hill_factor(relative, self.log_ec50, self.log_slope)

    def forward(self, component: Tensor, dose: Tensor, mask: Tensor) -> Tensor:
        """Return the effect of conditions, `(n, n_out)`; each argument is `(n, m)`."""
        factor = self.dose_factor(component, dose) * mask.to(self.vectors.dtype)
        return (self.vectors[component] * factor[..., None]).sum(dim=1)


def hill_factor(log_relative: Tensor, log_ec50: Tensor, log_slope: Tensor) -> Tensor:
    """Return the Hill curve of a relative dose, scaled to 1 at relative dose 1."""
    slope = log_slope.exp()
    top = torch.sigmoid(-slope * log_ec50)
    return torch.sigmoid(slope * (log_relative - log_ec50)) / top
