"""What a model of latent groups and operators is told, beside the size of its networks."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal, get_args

from scvi_perturb._errors import check_choice
from scvi_perturb.nn import PriorKind

__all__ = ["CausalConfig", "Independence"]

Independence = Literal["hsic", "total_correlation", "adversary", "none"]


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
        check_choice("prior", self.prior, get_args(PriorKind))
        check_choice("independence", self.independence, get_args(Independence))
        for name in ("n_identity", "n_state", "n_technical", "n_components"):
            least = 2 if name == "n_identity" and self.prior == "flow" else 1
            if getattr(self, name) < least:
                msg = f"{name}={getattr(self, name)}; expected at least {least}."
                raise ValueError(msg)
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not (math.isfinite(value) and value >= 0):
                msg = f"{field.name}={value}; expected a finite number, 0 or more."
                raise ValueError(msg)
        if self.metadata_dropout >= 1:
            msg = f"metadata_dropout={self.metadata_dropout}; expected a share below 1."
            raise ValueError(msg)

    @property
    def n_latent(self) -> int:
        """Dimension of all groups, depth included."""
        return self.n_identity + self.n_state + self.n_technical + 1
