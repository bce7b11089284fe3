"""How to sample: the samplers by name, and a choice among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, get_args

from scvi_perturb._errors import check_choice
from scvi_perturb.generative._ode import Solver
from scvi_perturb.generative._samplers import (
    check_evaluations,
    ddim,
    dpm_solver_2m,
    euler_maruyama,
    heun,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from scvi_perturb.generative._samplers import Sampler

__all__ = ["SAMPLERS", "SOLVERS", "SamplerConfig", "SamplerName", "solver_of"]

SamplerName = Literal["heun", "dpm++2m", "ddim", "euler-maruyama", "euler", "rk4"]

#: Solvers of flows, by name.
SOLVERS: Final[tuple[Solver, ...]] = get_args(Solver)

#: Samplers of diffusions, by name.
SAMPLERS: Final[dict[str, Sampler]] = {
    "heun": heun,
    "dpm++2m": dpm_solver_2m,
    "ddim": ddim,
    "euler-maruyama": euler_maruyama,
}


@dataclass(frozen=True, slots=True)
class SamplerConfig:
    """How to sample: method, number of network evaluations, strength of guidance.

    Parameters
    ----------
    method
        Name of the sampler: of a diffusion one of `SAMPLERS`, of a flow one of `SOLVERS`.
    n_evaluations
        Number of evaluations of the network; with guidance each costs two network calls.
    guidance_scale
        1 is no guidance; above 1 the condition is overstated and spread shrinks.

    Raises
    ------
    ValueError
        If the method is not known or a number is out of range.
    """

    method: SamplerName = "heun"
    n_evaluations: int = 20
    guidance_scale: float = 1.0

    def __post_init__(self) -> None:
        """Check the values."""
        check_choice("method", self.method, tuple(dict.fromkeys((*SAMPLERS, *SOLVERS))))
        check_evaluations(self.n_evaluations)
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            msg = (
                f"guidance_scale={self.guidance_scale} is not a guidance scale; expected a finite "
                "number >= 0 (1 means no guidance)."
            )
            raise ValueError(msg)

    @classmethod
    def of(
        cls, sampler: SamplerName | SamplerConfig, methods: Iterable[str] = tuple(SAMPLERS)
    ) -> SamplerConfig:
        """Return a configuration as it is, or the defaults of a method by its name.

        Raises
        ------
        ValueError
            If the method is none of those that are to be had.
        """
        check_choice("sampler", getattr(sampler, "method", sampler), methods)
        return sampler if isinstance(sampler, SamplerConfig) else cls(method=sampler)


def solver_of(sampler: SamplerConfig) -> Solver:
    """Return the method of a flow.

    Raises
    ------
    ValueError
        If it is a method of diffusions.
    """
    for solver in SOLVERS:
        if solver == sampler.method:
            return solver
    msg = f"sampler={sampler.method!r} is not of flows; choose one of {SOLVERS}."
    raise ValueError(msg)
