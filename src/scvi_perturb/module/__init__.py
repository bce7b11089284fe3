"""Modules: tensors in, tensors and losses out."""

from __future__ import annotations

from scvi_perturb.module.autoencoder import AutoencoderConfig, CountAutoencoder, ScviRepresentation
from scvi_perturb.module.base import (
    ConditionBatch,
    ConditionTensors,
    CountParameters,
    Representation,
)
from scvi_perturb.module.causal import CausalConfig, CausalModule
from scvi_perturb.module.count_diffusion import CountDiffusion
from scvi_perturb.module.diffusion import DiffusionConfig, LatentDiffusion
from scvi_perturb.module.flow import FlowConfig, LatentFlow, LatentSplines
from scvi_perturb.module.generator import GeneratorConfig, LatentGenerator, TwoStageModule

__all__ = [
    "AutoencoderConfig",
    "CausalConfig",
    "CausalModule",
    "ConditionBatch",
    "ConditionTensors",
    "CountAutoencoder",
    "CountDiffusion",
    "CountParameters",
    "DiffusionConfig",
    "FlowConfig",
    "GeneratorConfig",
    "LatentDiffusion",
    "LatentFlow",
    "LatentGenerator",
    "LatentSplines",
    "Representation",
    "ScviRepresentation",
    "TwoStageModule",
]
