"""Layers: residual blocks, encoders, decoders, and the networks that read a condition."""

from scvi_perturb.nn._additive import AdditiveEffect, hill_factor
from scvi_perturb.nn._blocks import AdaptiveBlock, TimeEmbedding, hidden_layers
from scvi_perturb.nn._conditional import ConditionalNetwork
from scvi_perturb.nn._count_network import CountNetwork
from scvi_perturb.nn._encoders import CountDecoder, Decoded, ExpressionEncoder
from scvi_perturb.nn._perturbation import PerturbationEncoder
from scvi_perturb.nn._splines import SplineChain

__all__ = [
    "AdaptiveBlock",
    "AdditiveEffect",
    "ConditionalNetwork",
    "CountDecoder",
    "CountNetwork",
    "Decoded",
    "ExpressionEncoder",
    "PerturbationEncoder",
    "SplineChain",
    "TimeEmbedding",
    "hidden_layers",
    "hill_factor",
]
