"""The public contract on our own models."""

from __future__ import annotations

from scvi_perturb.testing import ModelContract
from tests.contract.registry import MODELS

DIFFUSION, HYBRID, FLOW, CAUSAL = MODELS


class TestPerturbDiffusion(ModelContract):
    case = DIFFUSION


class TestHybridResidualModel(ModelContract):
    case = HYBRID


class TestPerturbFlow(ModelContract):
    case = FLOW


class TestCausalPerturbVAE(ModelContract):
    case = CAUSAL
