"""For every kind, what is planted in training is found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scvi_perturb._core import LeakError
from scvi_perturb.data import ScreenKeys
from scvi_perturb.data.split.kinds import Split, SplitOptions, split
from tests.data._screen import KINDS, screen

LABELS = ["control", "A", "B", "C", "D", "A+B", "C+D"]
HOLDING = [kind for kind in KINDS if kind != "cells"]


@pytest.fixture
def adata():
    return screen(LABELS, doses=("1", "2", "5"), n_cells=4)


def planted(adata, made, *, like, perturbation, dose):
    """Relabel a training cell that is not a control, with the context of the cell `like`."""
    labels = adata.obs["perturbation"].iloc[made.train]
    where = adata.obs_names[made.train[np.flatnonzero(labels != "control")[0]]]
    adata.obs.loc[where, ["perturbation", "dose"]] = [perturbation, dose]
    adata.obs.loc[where, "cell_type"] = adata.obs["cell_type"].iloc[like]


@pytest.mark.parametrize("kind", HOLDING)
@pytest.mark.parametrize("into", ["train", "validation"])
def test_an_edited_file(adata, kind, into):
    state = split(adata, kind, keys=KINDS[kind]).to_dict()
    state[into].append(state["test"].pop())
    edited = Split.from_dict(json.loads(json.dumps(state)))
    with pytest.raises(LeakError, match="1 cells"):
        edited.leaks(adata)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edited_file_with_a_cell_twice(adata, kind):
    state = split(adata, kind, keys=KINDS[kind]).to_dict()
    state["train"].append(state["test"][0])
    with pytest.raises(LeakError, match="two parts"):
        Split.from_dict(json.loads(json.dumps(state)))


@pytest.mark.parametrize("kind", HOLDING)
def test_what_is_held_out_hides_in_a_new_combination(adata, kind):
    made = split(adata, kind, keys=KINDS[kind], fraction=0.4)
    made.leaks(adata)
    row = adata.obs.iloc[made.test[0]]
    label, doses = f"{row['perturbation']}+NEW", f"{row['dose']}+7"
    planted(adata, made, like=made.test[0], perturbation=label, dose=doses)
    with pytest.raises(LeakError, match=r"NEW|1 cells"):
        made.leaks(adata)


def test_any_perturbed_cell_of_a_held_out_context(adata):
    made = split(adata, "unseen_context", keys=ScreenKeys(context="cell_type"))
    planted(adata, made, like=made.test[0], perturbation="NEW", dose="1")
    with pytest.raises(LeakError, match=r"NEW.*1 cells"):
        made.leaks(adata)


@pytest.mark.parametrize("dose", ["top", "inner"])
def test_a_dose_beyond_the_top_one(adata, dose):
    options = SplitOptions(dose=dose)
    made = split(adata, "dose", fraction=1.0, options=options)
    planted(adata, made, like=made.test[0], perturbation="A", dose="50")
    if dose == "inner":
        made.leaks(adata)
    else:
        with pytest.raises(LeakError, match=r"A, 50 \(1 cells\)"):
            made.leaks(adata)


@pytest.mark.parametrize("kind", HOLDING)
def test_a_new_condition_that_hides_nothing_passes(adata, kind):
    made = split(adata, kind, keys=KINDS[kind])
    train = adata.obs["perturbation"].iloc[made.train]
    like = made.train[np.flatnonzero(train != "control")[0]]
    planted(adata, made, like=like, perturbation="NEW", dose="1")
    assert made.leaks(adata) is None  # it raises where there is one


def test_part_of_a_held_out_combination_is_no_leak(adata):
    made = split(adata, "unseen_combination", options=SplitOptions(held_out=["A+B"]))
    planted(adata, made, like=made.test[0], perturbation="A+C", dose="1+1")
    assert made.leaks(adata) is None


def test_what_is_shown_may_be_seen_but_no_new_combination_with_it():
    adata = screen(["control", "A", "B", "C"], n_cells=20)
    options = SplitOptions(shown=0.3)
    made = split(adata, "context_transfer", keys=ScreenKeys(context="cell_type"), options=options)
    made.leaks(adata)
    label = f"{adata.obs['perturbation'].iloc[made.test[0]]}+NEW"
    planted(adata, made, like=made.test[0], perturbation=label, dose="1+1")
    with pytest.raises(LeakError, match="NEW"):
        made.leaks(adata)
