"""Simulated screens with known effects."""

from __future__ import annotations

from scvi_perturb.data.simulate.config import SimulatorConfig
from scvi_perturb.data.simulate.oracle import (
    expected_profile,
    perturbation_features,
    sample_truth,
    state_shift,
    true_effect,
)
from scvi_perturb.data.simulate.screen import simulate_screen

__all__ = [
    "SimulatorConfig",
    "expected_profile",
    "perturbation_features",
    "sample_truth",
    "simulate_screen",
    "state_shift",
    "true_effect",
]
