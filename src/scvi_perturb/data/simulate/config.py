"""What a simulated screen looks like: one frozen configuration that checks itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Self

from scvi_perturb._checks import check_fields, checked, parse_json


@checked
@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatorConfig:
    """Design and strength of everything in a simulated screen.

    Log-fold changes are natural logarithms. Effects are defined at the reference dose and time,
    which are the largest of `doses` and `times`.

    Parameters
    ----------
    n_perturbations
        Single perturbations in the screen.
    n_unseen
        Further perturbations, absent from the screen, whose features and true effects exist.
    n_combinations
        Pairs of perturbations in the screen, drawn at random; measured at the reference dose.
    interaction_strength
        Size of each pair's departure from additivity, relative to the geometric mean of the two
        effects' sizes; 0 makes combinations add up exactly in the state.
    doses
        Doses at which every single perturbation is measured; None leaves the column out.
    times
        Times at which every condition, controls included, is measured; None leaves it out.
    n_contexts, context_distance, context_modulation
        Cell types; spread of their centroids; relative spread of the effects between them.
    n_batches, batch_effect
        Batches; standard deviation of a batch's log-fold change of a gene.
    n_identity, n_state, n_technical
        Dimensions of the three latent factors. The first technical one is sequencing depth.
    identity_sd, state_sd
        Standard deviation of cells of one context along each identity and state dimension.
    effect_size
        Size of a perturbation's shift along each state program that it moves: the standard
        deviation of the log-fold change of that program's genes.
    program_share, gene_share
        Share of state programs moved by each perturbation; share of genes in each program.
    responder_fraction
        Share of perturbed cells that respond; the others are as control cells.
    n_features, feature_r2
        Features of a perturbation (at least `n_state`); share of the effects' variance that is
        linear in them.
    n_decoy_features
        Features that carry nothing, returned as a second modality when positive.
    library_size, library_sd
        Mean counts of a cell; standard deviation of their logarithm.
    dispersion
        Median inverse dispersion of the negative binomial: variance = mean + mean^2 / dispersion.
    control_fraction
        Share of cells that are controls.

    Raises
    ------
    ValueError
        If a value is out of range.
    """

    n_perturbations: int = 12
    n_unseen: int = 4
    n_combinations: int = 6
    interaction_strength: float = 0.0
    doses: tuple[float, ...] | None = None
    times: tuple[float, ...] | None = None
    n_contexts: int = 3
    context_distance: float = 1.0
    context_modulation: float = 0.3
    n_batches: int = 2
    batch_effect: float = 0.2
    n_identity: int = 4
    n_state: int = 6
    n_technical: int = 3
    identity_sd: float = 0.3
    state_sd: float = 0.4
    effect_size: float = 1.0
    program_share: float = 0.3
    gene_share: float = 0.15
    responder_fraction: float = 0.9
    n_features: int = 8
    feature_r2: float = 0.9
    n_decoy_features: int = 0
    library_size: float = 3000.0
    library_sd: float = 0.3
    dispersion: float = 5.0
    control_fraction: float = 0.2

    def __post_init__(self) -> None:
        self._require(
            "n_features", self.n_features >= self.n_state, f"at least n_state={self.n_state}"
        )
        pairs = self.n_perturbations * (self.n_perturbations - 1) // 2
        self._require("n_combinations", self.n_combinations <= pairs, f"at most {pairs} pairs")
        for name in ("doses", "times"):
            levels = getattr(self, name)
            if levels is not None:
                object.__setattr__(self, name, tuple(float(level) for level in levels))
                legal = len(levels) > 0 and len(set(levels)) == len(levels)
                self._require(name, legal, "None or different values")

    def _require(self, name: str, fulfilled: bool, expected: str) -> None:  # noqa: FBT001
        if not fulfilled:
            msg = f"SimulatorConfig: {name}={getattr(self, name)!r}, expected {expected}."
            raise ValueError(msg)

    @property
    def reference_dose(self) -> float:
        """Dose at which effects are defined."""
        return 1.0 if self.doses is None else max(self.doses)

    @property
    def reference_time(self) -> float:
        """Time at which effects are defined."""
        return 1.0 if self.times is None else max(self.times)

    def to_json(self) -> str:
        """Return the configuration as JSON, which h5ad files can hold."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the configuration that `to_json` wrote."""
        state = parse_json(text, "a configuration of the simulator")
        check_fields("a configuration of the simulator", state, (f.name for f in fields(cls)))
        return cls(**state)
