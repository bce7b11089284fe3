"""What a screen is: conditions, splits, matching, reading, simulation, public data."""

from scvi_perturb.data._align import align_genes
from scvi_perturb.data._condition import Component, Condition
from scvi_perturb.data._control_groups import ControlGroups, group_controls
from scvi_perturb.data._counts import check_raw_counts
from scvi_perturb.data._datamodule import BatchSampler, ScreenDataModule
from scvi_perturb.data._datasets import list_datasets, load_dataset
from scvi_perturb.data._fields import encode_labels
from scvi_perturb.data._keys import ConditionKeys
from scvi_perturb.data._matching import match_controls
from scvi_perturb.data._reader import ScreenReader, read_rows
from scvi_perturb.data._simulate import simulate_screen
from scvi_perturb.data._split_plan import SplitOptions
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
    "Split",
    "SplitOptions",
    "align_genes",
    "check_raw_counts",
    "encode_labels",
    "encode_obs",
    "group_controls",
    "list_datasets",
    "load_dataset",
    "match_controls",
    "read_rows",
    "simulate_screen",
    "split",
]
