"""Modules: tensors in, tensors and losses out."""

from scvi_perturb.module.autoencoder import AutoencoderConfig, CountAutoencoder, ScviRepresentation
from scvi_perturb.module.base import Asked, ConditionTensors, CountParameters, Representation
from scvi_perturb.module.causal import (
    CausalConfig,
    CausalDesign,
    CausalModule,
    GroupedAutoencoder,
    Groups,
    Independence,
    heads_loss,
    perturbation_inputs,
    state_divergence,
)
from scvi_perturb.module.count_diffusion import CountDiffusion, RawCounts
from scvi_perturb.module.diffusion import DiffusionConfig, LatentDiffusion
from scvi_perturb.module.flow import FlowConfig, LatentFlow, LatentSplines
from scvi_perturb.module.generator import GeneratorConfig, LatentGenerator, TwoStageModule

__all__ = [
    "Asked",
    "AutoencoderConfig",
    "CausalConfig",
    "CausalDesign",
    "CausalModule",
    "ConditionTensors",
    "CountAutoencoder",
    "CountDiffusion",
    "CountParameters",
    "DiffusionConfig",
    "FlowConfig",
    "GeneratorConfig",
    "GroupedAutoencoder",
    "Groups",
    "Independence",
    "LatentDiffusion",
    "LatentFlow",
    "LatentGenerator",
    "LatentSplines",
    "RawCounts",
    "Representation",
    "ScviRepresentation",
    "TwoStageModule",
    "heads_loss",
    "perturbation_inputs",
    "state_divergence",
]
