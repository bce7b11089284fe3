"""A small annotated screen, and the kinds of splits with the keys they need."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

from scvi_perturb.data import ScreenKeys

DOSED = ScreenKeys(dose="dose")
IN_CONTEXTS = ScreenKeys(dose="dose", context="cell_type")
KINDS = {
    "cells": DOSED,
    "unseen_combination": DOSED,
    "unseen_perturbation": DOSED,
    "context_transfer": IN_CONTEXTS,
    "unseen_context": IN_CONTEXTS,
    "dose": DOSED,
}


def screen(labels, *, doses=("1",), contexts=("T", "B", "NK"), n_cells=10, seed=0):
    """Return a screen with `n_cells` of each label, dose and context, shuffled."""
    rows = [
        (label, "+".join([dose] * (label.count("+") + 1)), context)
        for label in labels
        for dose in doses
        for context in contexts
        for _ in range(n_cells)
    ]
    obs = pd.DataFrame(rows, columns=["perturbation", "dose", "cell_type"])
    obs = obs.sample(frac=1, random_state=seed).set_axis([f"c{i}" for i in range(len(obs))])
    return AnnData(obs=obs, var=pd.DataFrame(index=["g0", "g1"]))
