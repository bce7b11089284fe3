"""What a screen is: conditions, splits, matching, reading, simulation, public data."""

from scvi_perturb.data._align import align_genes
from scvi_perturb.data._condition import Component, Condition
from scvi_perturb.data._control_groups import ControlGroups, group_controls
from scvi_perturb.data._counts import check_raw_counts
from scvi_perturb.data._datamodule import BatchSampler, ScreenDataModule
from scvi_perturb.data._datasets import list_datasets, load_dataset
from scvi_perturb.data._fields import encode_labels
from scvi_perturb.data._files import read_screen
from scvi_perturb.data._keys import ConditionKeys
from scvi_perturb.data._matching import match_controls
from scvi_perturb.data._reader import ScreenReader, read_rows
from scvi_perturb.data._simulate import simulate_screen
from scvi_perturb.data._simulate_config import SimulatorConfig
from scvi_perturb.data._simulate_oracle import (
    expected_profile,
    perturbation_features,
    sample_truth,
    state_shift,
    true_effect,
)
from scvi_perturb.data._split_options import SplitOptions
from scvi_perturb.data._split_record import Split
from scvi_perturb.data._splits import split
from scvi_perturb.data._table import ConditionArrays, ConditionTable, encode_obs
from scvi_perturb.data._writer import CsrFileWriter

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
