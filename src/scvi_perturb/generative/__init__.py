"""The mathematics of generation: schedules, diffusion, samplers, likelihoods. Torch only."""

from __future__ import annotations

from scvi_perturb.generative._cosine import CosineSchedule
from scvi_perturb.generative._counts import sample_counts
from scvi_perturb.generative._coupling import CouplingMethod, couple
from scvi_perturb.generative._density import (
    FlowDensity,
    flow_log_density,
    standard_normal_log_prob,
)
from scvi_perturb.generative._dependence import hsic, total_correlation
from scvi_perturb.generative._diffusion import add_noise, denoising_loss, guide, min_snr_weight
from scvi_perturb.generative._discrete import DiscreteDiffusion, Transition
from scvi_perturb.generative._flow import (
    FlowQuantities,
    TimeLaw,
    flow_loss,
    flow_quantities,
    flow_times,
    line,
)
from scvi_perturb.generative._likelihoods import (
    nb_log_prob,
    normal_log_prob,
    poisson_log_prob,
    zinb_log_prob,
)
from scvi_perturb.generative._linear import LinearSchedule
from scvi_perturb.generative._ode import (
    Field,
    Solver,
    integrate,
    integrate_adaptive,
    n_steps_of,
)
from scvi_perturb.generative._parameterisation import (
    Denoiser,
    Parameterisation,
    to_eps,
    to_score,
    to_velocity,
    to_x0,
)
from scvi_perturb.generative._path import LinearPath
from scvi_perturb.generative._sampler_config import (
    SAMPLERS,
    SOLVERS,
    SamplerConfig,
    SamplerName,
    solver_of,
)
from scvi_perturb.generative._samplers import Sampler, ddim, dpm_solver_2m, euler_maruyama, heun
from scvi_perturb.generative._schedule import LOG_SNR_LIMIT, Schedule
from scvi_perturb.generative._schedules import ScheduleName, get_schedule
from scvi_perturb.generative._trace import (
    Divergence,
    exact_divergence,
    hutchinson_divergence,
    rademacher,
)

__all__ = [
    "LOG_SNR_LIMIT",
    "SAMPLERS",
    "SOLVERS",
    "CosineSchedule",
    "CouplingMethod",
    "Denoiser",
    "DiscreteDiffusion",
    "Divergence",
    "Field",
    "FlowDensity",
    "FlowQuantities",
    "LinearPath",
    "LinearSchedule",
    "Parameterisation",
    "Sampler",
    "SamplerConfig",
    "SamplerName",
    "Schedule",
    "ScheduleName",
    "Solver",
    "TimeLaw",
    "Transition",
    "add_noise",
    "couple",
    "ddim",
    "denoising_loss",
    "dpm_solver_2m",
    "euler_maruyama",
    "exact_divergence",
    "flow_log_density",
    "flow_loss",
    "flow_quantities",
    "flow_times",
    "get_schedule",
    "guide",
    "heun",
    "hsic",
    "hutchinson_divergence",
    "integrate",
    "integrate_adaptive",
    "line",
    "min_snr_weight",
    "n_steps_of",
    "nb_log_prob",
    "normal_log_prob",
    "poisson_log_prob",
    "rademacher",
    "sample_counts",
    "solver_of",
    "standard_normal_log_prob",
    "to_eps",
    "to_score",
    "to_velocity",
    "to_x0",
    "total_correlation",
    "zinb_log_prob",
]
