"""The contract of scvi-perturb's models on `PerturbShift`, and the places where it can be named."""

from __future__ import annotations

import numpy as np
from perturb_shift import PerturbShift, ShiftConfig

from scvi_perturb import HybridResidualModel
from scvi_perturb.benchmark import read_study, run
from scvi_perturb.registry import registry
from scvi_perturb.testing import NEW_PAIR, ModelCase, ModelContract, fit, make_model, make_screen

SMALL = ShiftConfig(width=16, n_condition=8, n_neighbours=5)
STUDY = """
methods = ["no_change"]
seeds = [0]
max_folds = 1

[[task]]
name = "simulated"
file = "screen.h5ad"
split = "unseen_combination"
perturbation_key = "perturbation"
context_keys = ["cell_type"]

[[model]]
name = "small_shift"
class = "PerturbShift"
options = { n_latent = 4, n_hidden = 16, shift = { width = 16, n_neighbours = 5 } }
train = { max_epochs = 2, n_steps = 10 }
"""
TRAIN = {"max_epochs": 2, "n_steps": 10, "batch_size": 64}


class TestPerturbShift(ModelContract):
    case = ModelCase(
        PerturbShift, init={"n_latent": 4, "n_hidden": 16, "shift": SMALL}, train=TRAIN
    )


def test_registries_name_it():
    assert registry("models")["PerturbShift"] is PerturbShift
    assert registry("generators")["shift"] is ShiftConfig


def test_it_is_a_generator_of_the_hybrid():
    case = ModelCase(
        HybridResidualModel, init={"n_latent": 4, "n_hidden": 16, "generator": SMALL}, train=TRAIN
    )
    model = fit(case, make_model(case, make_screen()))
    assert type(model.module.generator).__name__ == "LatentShift"
    assert model.sample([NEW_PAIR], n_samples=5).X.sum() > 0


def test_a_study_file_names_it(tmp_path):
    adata = make_screen()
    del adata.uns["truth"]
    adata.write_h5ad(tmp_path / "screen.h5ad")
    study = tmp_path / "study.toml"
    study.write_text(STUDY)
    results = run(read_study(study).study, tmp_path / "results")
    assert results.status().set_index("method")["status"]["small_shift"] == "ok"
    assert np.isfinite(results.summary().set_index("method").loc["small_shift", "u"]).any()
