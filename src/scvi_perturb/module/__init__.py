"""Modules: tensors in, tensors and losses out."""

from scvi_perturb.module._asked import Asked
from scvi_perturb.module._autoencoder import AutoencoderConfig, CountAutoencoder
from scvi_perturb.module._bins import RawCounts
from scvi_perturb.module._causal import CausalModule, GroupedAutoencoder
from scvi_perturb.module._causal_config import CausalConfig, Independence
from scvi_perturb.module._causal_design import CausalDesign
from scvi_perturb.module._causal_groups import Groups, state_divergence
from scvi_perturb.module._causal_loss import heads_loss, perturbation_inputs
from scvi_perturb.module._conditions import ConditionTensors
from scvi_perturb.module._count_diffusion import CountDiffusion
from scvi_perturb.module._diffusion import LatentDiffusion
from scvi_perturb.module._diffusion_config import DiffusionConfig
from scvi_perturb.module._flow import LatentFlow
from scvi_perturb.module._flow_config import FlowConfig
from scvi_perturb.module._generator import LatentGenerator
from scvi_perturb.module._generator_config import GeneratorConfig
from scvi_perturb.module._representation import CountParameters, Representation
from scvi_perturb.module._scvi import ScviRepresentation
from scvi_perturb.module._splines import LatentSplines
from scvi_perturb.module._two_stage import TwoStageModule

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
