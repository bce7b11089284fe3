"""Perturbations as operators on a latent: vectors that add, scale with dose, bend by identity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import torch
from scipy.fft import dct
from torch import Tensor, nn

from scvi_perturb.nn.perturbation import hill_factor

if TYPE_CHECKING:
    from collections.abc import Iterable

#: Vectors are this times their parameter. An adaptive optimiser moves every parameter by its
#: learning rate a step, and vectors are several units long: at that pace they would be left behind
#: while encoder and decoder change the scale of the state.
PACE: Final = 10.0


class OperatorPenalties(NamedTuple):
    """Sizes of the parts of operators, to be shrunk."""

    vectors: Tensor
    pairs: Tensor
    context: Tensor
    absolute: Tensor


class PerturbationOperators(nn.Module):
    """Shift of the state under a condition.

    `B(z) sum_j w_j f_j(d_j) g_j(t) e_j + sum_{i<j} f_i f_j p_ij`: a vector `e` a component, scaled
    by a monotone saturating function of its dose and time (1 at the reference dose and time), bent
    by the identity `z` of the cell, plus a term for each pair that was measured. The control shifts
    nothing, the order of components does not matter, and a pair never measured adds.

    Bending is `B(z) = C diag(1 + tanh(M z)) C'` with `C` of the orthonormal cosine transform: the
    state's first direction has an equal part in all factors, so that vectors turn with identity.
    Factors of the state's own entries would stretch them and no more, and those start with one
    direction for the mean response, beside which there is nothing to stretch.

    Parameters
    ----------
    n_components
        Number of component ids; those without training cells get their vectors after training.
    n_state, n_identity
        Dimensions of the two latents.
    pairs
        Ids of the pairs measured in the screen.
    """

    reference_dose: Tensor
    reference_time: Tensor
    pair_keys: Tensor
    cosines: Tensor

    def __init__(
        self, n_components: int, n_state: int, n_identity: int, pairs: Iterable[tuple[int, int]]
    ) -> None:
        super().__init__()
        self.n_components = max(n_components, 1)
        self.paced = nn.Parameter(torch.zeros(self.n_components, n_state))
        self.log_ec50 = nn.Parameter(torch.zeros(self.n_components))
        self.log_slope = nn.Parameter(torch.zeros(self.n_components))
        self.log_tau = nn.Parameter(torch.zeros(self.n_components))
        self.bend = nn.Linear(n_identity, n_state, bias=False)
        nn.init.zeros_(self.bend.weight)
        cosines = torch.from_numpy(dct(np.eye(n_state), norm="ortho", axis=0)).float()
        self.register_buffer("cosines", cosines)
        keys = sorted({self._key(min(p), max(p)) for p in pairs})
        self.register_buffer("pair_keys", torch.tensor(keys, dtype=torch.long), persistent=False)
        self.pairs = nn.Parameter(torch.zeros(max(len(keys), 1), n_state))
        self.register_buffer("reference_dose", torch.ones(self.n_components))
        self.register_buffer("reference_time", torch.ones(()))

    def forward(
        self,
        component: Tensor,
        dose: Tensor,
        mask: Tensor,
        time: Tensor,
        *,
        identity: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> Tensor:
        """Return the shift of the state, `(n, n_state)`.

        `component`, `dose`, `mask`: Ids, doses and which of them are there, `(n, m)`. `time`:
        `(n,)`, NaN where not recorded. `identity`: Identity of the cells, `(n, n_identity)`; None
        for the average cell. `weight`: Factor of each component, `(n, m)`, for sums and
        differences, which have no terms of pairs; None for ones.
        """
        factor = self.dose_factor(component, dose) * self.time_factor(component, time[:, None])
        factor = factor * mask.to(factor.dtype)
        if weight is not None:
            factor = factor * weight
        total = (self.vectors[component] * factor[..., None]).sum(dim=1)
        if identity is not None:
            # Bounded: an identity far from those of training must not turn effects around.
            bent = torch.tanh(self.bend(identity))
            total = total + (total @ self.cosines * bent) @ self.cosines.T
        # A weighted sum is of vectors alone: what pairs do beyond it is no part of either.
        return total if weight is not None else total + self._of_pairs(component, factor, mask)

    @property
    def vectors(self) -> Tensor:
        """Vector of each component, `(n_components, n_state)`."""
        return PACE * self.paced

    @torch.no_grad()
    def set_vectors(self, vectors: Tensor) -> None:
        """Set the leading dimensions of all vectors, `(n_components, k)`."""
        self.paced[:, : vectors.shape[1]] = (vectors / PACE).to(self.paced)

    def dose_factor(self, component: Tensor, dose: Tensor) -> Tensor:
        """Return the Hill curve of the dose, 1 at the reference dose: `(n, m) -> (n, m)`."""
        relative = (dose / self.reference_dose[component]).clamp_min(1e-12).log()
        factor = hill_factor(relative, self.log_ec50[component], self.log_slope[component])
        # Exactly: rounding errors would be gradients of curves that nothing is known of.
        return torch.where(relative == 0, torch.ones_like(factor), factor)

    def time_factor(self, component: Tensor, time: Tensor) -> Tensor:
        """Return the saturating curve of the time, 1 at the reference time and where unknown."""
        known = torch.isfinite(time)
        relative = torch.where(known, time / self.reference_time, torch.ones_like(time))
        rate = (-self.log_tau[component]).exp()
        factor = torch.expm1(-rate * relative) / torch.expm1(-rate)
        return torch.where(known & (relative != 1), factor, torch.ones_like(factor))

    def penalties(self, used: Tensor) -> OperatorPenalties:
        """Return the sizes of the parts of the operators of the ids `used`."""
        vectors = self.vectors[used]
        curves = self.log_ec50[used].square().sum() + self.log_slope[used].square().sum()
        curves = curves + self.log_tau[used].square().sum()
        return OperatorPenalties(
            vectors.square().sum() + 0.1 * curves,
            self.pairs.square().sum(),
            self.bend.weight.square().sum(),
            vectors.abs().sum(),
        )

    def _key(self, first: int, second: int) -> int:
        return first * self.n_components + second

    def _of_pairs(self, component: Tensor, factor: Tensor, mask: Tensor) -> Tensor:
        """Return the sum of the terms of the measured pairs among the components of each row."""
        total = factor.new_zeros(len(component), self.vectors.shape[1])
        n_keys = len(self.pair_keys)
        if n_keys == 0:
            return total
        for i in range(component.shape[1]):
            for j in range(i + 1, component.shape[1]):
                low = torch.minimum(component[:, i], component[:, j])
                key = low * self.n_components + torch.maximum(component[:, i], component[:, j])
                place = torch.searchsorted(self.pair_keys, key).clamp_max(n_keys - 1)
                found = (self.pair_keys[place] == key) & mask[:, i] & mask[:, j]
                both = factor[:, i] * factor[:, j] * found.to(factor.dtype)
                total = total + both[:, None] * self.pairs[place]
        return total
