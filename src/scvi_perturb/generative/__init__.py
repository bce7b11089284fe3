"""Numerics of generative models: schedules, diffusion, samplers, flows, likelihoods."""

from __future__ import annotations

from scvi_perturb.generative.counts import sample_counts
from scvi_perturb.generative.coupling import couple
from scvi_perturb.generative.diffusion import add_noise, denoising_loss
from scvi_perturb.generative.discrete import DiscreteDiffusion
from scvi_perturb.generative.flow import flow_log_density, integrate, integrate_adaptive
from scvi_perturb.generative.likelihoods import (
    nb_log_prob,
    normal_log_prob,
    poisson_log_prob,
    zinb_log_prob,
)
from scvi_perturb.generative.samplers import (
    SAMPLERS,
    SOLVERS,
    CosineSchedule,
    LinearSchedule,
    Sampler,
    SamplerConfig,
    Schedule,
    get_schedule,
)

__all__ = [
    "SAMPLERS",
    "SOLVERS",
    "CosineSchedule",
    "DiscreteDiffusion",
    "LinearSchedule",
    "Sampler",
    "SamplerConfig",
    "Schedule",
    "add_noise",
    "couple",
    "denoising_loss",
    "flow_log_density",
    "get_schedule",
    "integrate",
    "integrate_adaptive",
    "nb_log_prob",
    "normal_log_prob",
    "poisson_log_prob",
    "sample_counts",
    "zinb_log_prob",
]
