"""The hidden parameters of a simulated screen, and the response to any condition."""

from __future__ import annotations

from dataclasses import dataclass, fields
from itertools import combinations
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from scvi_perturb._errors import SchemaError, UnknownPerturbationError
from scvi_perturb.data._simulate_config import SimulatorConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from scvi_perturb.data._condition import Condition

__all__ = ["Truth"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Truth:
    """Parameters of the generative process; perturbations are those measured, then the unseen.

    Attributes
    ----------
    config
        The configuration of the screen.
    perturbations, contexts, batches
        Names.
    effects, effect_mask
        `(n_perturbations + n_unseen, n_state)`: shift of the state at the reference dose and
        time, averaged over contexts; the programs that are moved.
    features, decoy_features, feature_map
        `effects = features @ feature_map + residual`; decoys carry nothing.
    ec50, slope, tau
        Hill curve of the dose relative to the reference dose; time constant relative to the
        reference time; one for each perturbation.
    interaction_mixing
        `(n_state, n_state)` orthonormal matrix from which pair terms are built.
    context_modulation, context_centroids, batch_centroids
        `(n_contexts, n_state)`, `(n_contexts, n_identity)`, `(n_batches, n_technical)`.
    base, dispersion
        `(n_genes,)`: log abundance; inverse dispersion.
    loadings_identity, loadings_state, loadings_technical
        `(n_genes, dimensions)`: log-fold change of a gene for a unit of the factor.
    """

    config: SimulatorConfig
    perturbations: NDArray[np.object_]
    contexts: NDArray[np.object_]
    batches: NDArray[np.object_]
    effects: NDArray[np.float64]
    effect_mask: NDArray[np.bool_]
    features: NDArray[np.float64]
    decoy_features: NDArray[np.float64]
    feature_map: NDArray[np.float64]
    ec50: NDArray[np.float64]
    slope: NDArray[np.float64]
    tau: NDArray[np.float64]
    interaction_mixing: NDArray[np.float64]
    context_modulation: NDArray[np.float64]
    context_centroids: NDArray[np.float64]
    batch_centroids: NDArray[np.float64]
    base: NDArray[np.float64]
    dispersion: NDArray[np.float64]
    loadings_identity: NDArray[np.float64]
    loadings_state: NDArray[np.float64]
    loadings_technical: NDArray[np.float64]

    def to_uns(self) -> dict[str, Any]:
        """Return a dictionary of arrays and one string, which h5ad files can hold."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)[1:]}
        return {"config": self.config.to_json(), **arrays}

    @classmethod
    def from_uns(cls, uns: Mapping[str, Any]) -> Self:
        """Return the parameters that `to_uns` wrote to `adata.uns["truth"]`.

        Raises
        ------
        SchemaError
            If the data were not simulated here.
        """
        if "truth" not in uns:
            msg = (
                "adata.uns has no 'truth', so nothing is known about the true response; expected "
                "data made by simulate_screen (or a subset of them that keeps uns)."
            )
            raise SchemaError(msg)
        stored = dict(uns["truth"])
        config = SimulatorConfig.from_json(str(stored.pop("config")))
        arrays = {name: np.asarray(value) for name, value in stored.items()}
        return cls(config=config, **arrays)

    def index(self, name: str) -> int:
        """Return the row of a perturbation, or raise `UnknownPerturbationError`."""
        found = np.flatnonzero(self.perturbations == name)
        if not found.size:
            raise UnknownPerturbationError(name, map(str, self.perturbations))
        return int(found[0])

    def response(self, perturbation: int, dose: float, time: float | None) -> float:
        """Return the share of the reference effect at a dose (Hill) and time (saturating)."""
        power = self.slope[perturbation]
        x, half = (dose / self.config.reference_dose) ** power, self.ec50[perturbation] ** power
        share = x * (1 + half) / (x + half)
        if time is not None:
            rate = 1 / self.tau[perturbation]
            share *= np.expm1(-rate * time / self.config.reference_time) / np.expm1(-rate)
        return float(share)

    def interaction(self, first: int, second: int) -> NDArray[np.float64]:
        """Return a pair's departure from additivity `(n_state,)` at the reference dose."""
        mixed = self.effects[[first, second]] @ self.interaction_mixing
        direction = mixed[0] * mixed[1]
        size = np.sqrt(np.prod(np.linalg.norm(self.effects[[first, second]], axis=1)))
        length = np.linalg.norm(direction)
        if length == 0:
            return direction
        scaled: NDArray[np.float64] = self.config.interaction_strength * size / length * direction
        return scaled

    def shift(self, condition: Condition) -> NDArray[np.float64]:
        """Return the shift of a responding cell's state in every context `(n_contexts, n_state)`.

        No time means the reference time.
        """
        rows = [self.index(name) for name in condition.names]
        shares = [
            self.response(row, part.dose, condition.time)
            for row, part in zip(rows, condition.components, strict=True)
        ]
        total = np.asarray(shares) @ self.effects[rows]
        for i, j in combinations(range(len(rows)), 2):
            total = total + shares[i] * shares[j] * self.interaction(rows[i], rows[j])
        modulated: NDArray[np.float64] = total * (1 + self.context_modulation)
        return modulated
