"""Modules: tensors in, tensors and losses out."""

from scvi_perturb.module._autoencoder import AutoencoderConfig, CountAutoencoder
from scvi_perturb.module._diffusion import LatentDiffusion
from scvi_perturb.module._diffusion_config import ConditionTensors, DiffusionConfig
from scvi_perturb.module._representation import CountParameters, Representation
from scvi_perturb.module._scvi import ScviRepresentation
from scvi_perturb.module._two_stage import TwoStageModule

__all__ = [
    "AutoencoderConfig",
    "ConditionTensors",
    "CountAutoencoder",
    "CountParameters",
    "DiffusionConfig",
    "LatentDiffusion",
    "Representation",
    "ScviRepresentation",
    "TwoStageModule",
]
