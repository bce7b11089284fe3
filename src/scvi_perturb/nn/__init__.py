"""Layers: residual blocks, encoders, decoders, and the networks that read a condition."""

from scvi_perturb.nn._additive import AdditiveEffect, hill_factor
from scvi_perturb.nn._blocks import AdaptiveBlock, TimeEmbedding, hidden_layers
from scvi_perturb.nn._conditional import ConditionalNetwork
from scvi_perturb.nn._count_network import CountNetwork
from scvi_perturb.nn._encoders import CountDecoder, Decoded, ExpressionEncoder
from scvi_perturb.nn._metadata import MetadataEncoder, MetadataHead, MetadataSpec
from scvi_perturb.nn._operators import PACE, OperatorPenalties, PerturbationOperators
from scvi_perturb.nn._perturbation import PerturbationEncoder
from scvi_perturb.nn._prior import GroupPrior, PriorKind, gaussian_kl, gaussian_log_prob
from scvi_perturb.nn._splines import SplineChain

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
