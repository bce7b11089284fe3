"""What a screen is: conditions, splits, requests, reading, simulation, public data."""

from scvi_perturb.data.condition import Component, Condition, ScreenKeys
from scvi_perturb.data.condition_table import ConditionTable
from scvi_perturb.data.datasets import list_datasets, load_dataset
from scvi_perturb.data.reader import read_screen
from scvi_perturb.data.request import Request
from scvi_perturb.data.shards import open_shards, write_shards
from scvi_perturb.data.simulate.config import SimulatorConfig
from scvi_perturb.data.simulate.screen import (
    expected_profile,
    perturbation_features,
    sample_truth,
    simulate_screen,
    state_shift,
    true_effect,
)
from scvi_perturb.data.split.kinds import split
from scvi_perturb.data.split.record import Split, SplitOptions

#: The name that `ScreenKeys` had.
ConditionKeys = ScreenKeys

__all__ = [
    "Component",
    "Condition",
    "ConditionTable",
    "Request",
    "ScreenKeys",
    "SimulatorConfig",
    "Split",
    "SplitOptions",
    "expected_profile",
    "list_datasets",
    "load_dataset",
    "open_shards",
    "perturbation_features",
    "read_screen",
    "sample_truth",
    "simulate_screen",
    "split",
    "state_shift",
    "true_effect",
    "write_shards",
]
