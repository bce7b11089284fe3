"""How to sample: the samplers by name, and a choice among them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from scvi_perturb._errors import check_choice
from scvi_perturb.generative._samplers import (
    check_evaluations,
    ddim,
    dpm_solver_2m,
    euler_maruyama,
    heun,
)

if TYPE_CHECKING:
    from scvi_perturb.generative._samplers import Sampler

__all__ = ["SAMPLERS", "SamplerConfig", "SamplerName"]

SamplerName = Literal["heun", "dpm++2m", "ddim", "euler-maruyama"]

#: Samplers by name.
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
        Name of the sampler.
    n_evaluations
        Number of evaluations of the denoiser; with guidance each costs two network calls.
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
        check_choice("method", self.method, SAMPLERS)
        check_evaluations(self.n_evaluations)
        if not (math.isfinite(self.guidance_scale) and self.guidance_scale >= 0):
            msg = (
                f"guidance_scale={self.guidance_scale} is not a guidance scale; expected a finite "
                "number >= 0 (1 means no guidance)."
            )
            raise ValueError(msg)

    @classmethod
    def of(cls, sampler: SamplerName | SamplerConfig) -> SamplerConfig:
        """Return a configuration as it is, or the defaults of a method by its name."""
        return sampler if isinstance(sampler, SamplerConfig) else cls(method=sampler)
