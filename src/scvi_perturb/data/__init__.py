"""What a screen is: conditions, splits, matching, reading, simulation, public data."""

from scvi_perturb.data.condition import Component, Condition
from scvi_perturb.data.condition_table import ConditionArrays, ConditionTable, encode_obs
from scvi_perturb.data.datamodule import BatchSampler, ScreenDataModule
from scvi_perturb.data.datasets import list_datasets, load_dataset
from scvi_perturb.data.fields import encode_labels
from scvi_perturb.data.keys import ConditionKeys
from scvi_perturb.data.matching import ControlGroups, group_controls, match_controls
from scvi_perturb.data.reader import (
    ScreenReader,
    align_genes,
    check_raw_counts,
    read_rows,
    read_screen,
)
from scvi_perturb.data.simulate.config import SimulatorConfig
from scvi_perturb.data.simulate.oracle import (
    expected_profile,
    perturbation_features,
    sample_truth,
    state_shift,
    true_effect,
)
from scvi_perturb.data.simulate.screen import simulate_screen
from scvi_perturb.data.split.kinds import split
from scvi_perturb.data.split.record import Split, SplitOptions
from scvi_perturb.data.writer import CsrFileWriter

__all__ = [
    "BatchSampler",
    "Component",
    "Condition",
    "ConditionArrays",
    "ConditionKeys",
    "ConditionTable",
    "ControlGroups",
    "CsrFileWriter",
    "ScreenDataModule",
    "ScreenReader",
    "SimulatorConfig",
    "Split",
    "SplitOptions",
    "align_genes",
    "check_raw_counts",
    "encode_labels",
    "encode_obs",
    "expected_profile",
    "group_controls",
    "list_datasets",
    "load_dataset",
    "match_controls",
    "perturbation_features",
    "read_rows",
    "read_screen",
    "sample_truth",
    "simulate_screen",
    "split",
    "state_shift",
    "true_effect",
]
