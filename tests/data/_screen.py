"""A small annotated screen, and the kinds of splits with the context keys they need."""

from __future__ import annotations

import pandas as pd
from anndata import AnnData

KINDS = {
    "cells": (),
    "unseen_combination": (),
    "unseen_perturbation": (),
    "context_transfer": ("cell_type",),
    "unseen_context": ("cell_type",),
    "dose": (),
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
