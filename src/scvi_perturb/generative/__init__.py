"""The mathematics of generation: schedules, diffusion, samplers, likelihoods. Torch only."""

from __future__ import annotations

from scvi_perturb.generative._cosine import CosineSchedule
from scvi_perturb.generative._counts import sample_counts
from scvi_perturb.generative._coupling import CouplingMethod, couple
from scvi_perturb.generative._diffusion import add_noise, denoising_loss, guide, min_snr_weight
from scvi_perturb.generative._likelihoods import (
    nb_log_prob,
    normal_log_prob,
    poisson_log_prob,
    zinb_log_prob,
)
from scvi_perturb.generative._linear import LinearSchedule
from scvi_perturb.generative._parameterisation import (
    Denoiser,
    Parameterisation,
    to_eps,
    to_score,
    to_velocity,
    to_x0,
)
from scvi_perturb.generative._path import LinearPath
from scvi_perturb.generative._sampler_config import SAMPLERS, SamplerConfig, SamplerName
from scvi_perturb.generative._samplers import Sampler, ddim, dpm_solver_2m, euler_maruyama, heun
from scvi_perturb.generative._schedule import LOG_SNR_LIMIT, Schedule
from scvi_perturb.generative._schedules import ScheduleName, get_schedule

__all__ = [
    "LOG_SNR_LIMIT",
    "SAMPLERS",
    "CosineSchedule",
    "CouplingMethod",
    "Denoiser",
    "LinearPath",
    "LinearSchedule",
    "Parameterisation",
    "Sampler",
    "SamplerConfig",
    "SamplerName",
    "Schedule",
    "ScheduleName",
    "add_noise",
    "couple",
    "ddim",
    "denoising_loss",
    "dpm_solver_2m",
    "euler_maruyama",
    "get_schedule",
    "guide",
    "heun",
    "min_snr_weight",
    "nb_log_prob",
    "normal_log_prob",
    "poisson_log_prob",
    "sample_counts",
    "to_eps",
    "to_score",
    "to_velocity",
    "to_x0",
    "zinb_log_prob",
]
