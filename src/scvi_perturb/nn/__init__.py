"""Layers: residual blocks, encoders, decoders, and the networks that read a condition."""

from scvi_perturb.nn.denoiser import ConditionalNetwork, CountNetwork, SplineChain
from scvi_perturb.nn.layers import (
    AdaptiveBlock,
    CountDecoder,
    Decoded,
    ExpressionEncoder,
    TimeEmbedding,
    hidden_layers,
)
from scvi_perturb.nn.metadata import (
    GroupPrior,
    MetadataEncoder,
    MetadataHead,
    MetadataSpec,
    PriorKind,
    gaussian_kl,
    gaussian_log_prob,
)
from scvi_perturb.nn.operators import PACE, OperatorPenalties, PerturbationOperators
from scvi_perturb.nn.perturbation import AdditiveEffect, PerturbationEncoder, hill_factor

__all__ = [
    "PACE",
    "AdaptiveBlock",
    "AdditiveEffect",
    "ConditionalNetwork",
    "CountDecoder",
    "CountNetwork",
    "Decoded",
    "ExpressionEncoder",
    "GroupPrior",
    "MetadataEncoder",
    "MetadataHead",
    "MetadataSpec",
    "OperatorPenalties",
    "PerturbationEncoder",
    "PerturbationOperators",
    "PriorKind",
    "SplineChain",
    "TimeEmbedding",
    "gaussian_kl",
    "gaussian_log_prob",
    "hidden_layers",
    "hill_factor",
]
