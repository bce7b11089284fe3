"""A screen, its requests and its controls, without any model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd

from scvi_perturb.data import Condition, ConditionTable, ScreenKeys
from scvi_perturb.data.request import Request
from scvi_perturb.data.screen import Screen
from scvi_perturb.model.base.reference import Reference

KEYS = ScreenKeys("guide", dose="mg", time="hours", kind="how", control="NT")


def parse(label, **given):
    return Condition.parse(label, **given, control="NT")


def make_screen(conditions=(), *, keys=KEYS, genes=("g0", "g1")):
    """Return what a model remembers of a screen with these conditions."""
    return Screen(
        keys=replace(keys, context="cell_type", batch="batch"),
        rna_modality=None,
        table=ConditionTable.from_conditions(conditions, control="NT"),
        contexts=(("B",), ("T",)),
        batches=(("x",), ("y",)),
        genes=tuple(genes),
    )


def make_request(*labels, **context):
    """Return a request of labels, with the columns of contexts asked for."""
    return Request(tuple(parse(label) for label in labels), context, None)


def make_reference(counts, cell_type, library=None):
    """Return control cells of the cell types given."""
    counts = np.asarray(counts)
    codes = np.array([{"B": 0, "T": 1}.get(label, 2) for label in cell_type])
    labels = pd.DataFrame({"cell_type": list(cell_type)})
    labels.index = [f"c{i}" for i in range(len(labels))]
    size = counts.sum(1).astype(float) if library is None else np.asarray(library)
    return Reference(counts, size, codes, np.zeros(len(codes), dtype=np.int64), labels)
