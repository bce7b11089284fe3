"""Layers: residual blocks, encoders, decoders, and the networks that read a condition."""

from __future__ import annotations

from scvi_perturb.nn.layers import (
    ConditionalNetwork,
    CountDecoder,
    CountNetwork,
    ExpressionEncoder,
    SplineChain,
)
from scvi_perturb.nn.metadata import MetadataEncoder, MetadataSpec
from scvi_perturb.nn.operators import PerturbationOperators
from scvi_perturb.nn.perturbation import AdditiveEffect, PerturbationEncoder

__all__ = [
    "AdditiveEffect",
    "ConditionalNetwork",
    "CountDecoder",
    "CountNetwork",
    "ExpressionEncoder",
    "MetadataEncoder",
    "MetadataSpec",
    "PerturbationEncoder",
    "PerturbationOperators",
    "SplineChain",
]
