"""A planted leak is caught, and a method that has seen the answer fails the run."""

from __future__ import annotations

from dataclasses import dataclass, replace

import anndata
import numpy as np
import pandas as pd
import pytest

from scvi_perturb._core import LeakError
from scvi_perturb.benchmark import Method, Study, Task, evaluate, run
from scvi_perturb.data import Split
from scvi_perturb.metrics import pseudobulk
from scvi_perturb.predictors import NoChange
from tests.benchmark._world import TASK, make_trial, screen, truth_cells


@dataclass(frozen=True, kw_only=True)
class Leaky(Task):
    """A task whose split has one held-out cell in training."""

    def split(self, adata, *, seed, fold):
        made = super().split(adata, seed=seed, fold=fold)
        state = made.to_dict()
        state["train"] = sorted([*state["train"], state["test"].pop()])
        return Split.from_dict(state)


class Peeking(NoChange):
    """Return the profiles of the held-out cells, which it reads from a file of its own."""

    def _peeked(self, condition):
        adata = screen()
        held = (adata.obs["perturbation"] == str(condition)).to_numpy()
        return pseudobulk(adata[held].X)

    def predict(self, conditions, *, reference=None):
        made = super().predict(conditions, reference=reference)
        made.X = np.stack([self._peeked(name) for name in conditions["perturbation"]])
        return made


class Copying(NoChange):
    """Return held-out cells among others."""

    def sample(self, conditions, *, reference=None, n_samples=None, seed=None):
        adata = screen()
        parts = []
        for row in conditions.to_dict("records"):
            name = row["perturbation"]
            own = adata[(adata.obs["perturbation"] == "control").to_numpy()][: n_samples - 1]
            held = adata[(adata.obs["perturbation"] == name).to_numpy()][:1]
            cells = anndata.concat([own, held])
            cells.obs = pd.DataFrame(
                {key: [value] * cells.n_obs for key, value in row.items()},
                index=[str(i) for i in range(cells.n_obs)],
            )
            parts.append(cells)
        return anndata.concat(parts, index_unique="-")


def test_a_held_out_cell_in_training_stops_the_run(tmp_path):
    task = Leaky(**{name: getattr(TASK, name) for name in Task.__dataclass_fields__})
    study = Study(tasks=(task,), methods=(Method(name="any", make=_peeking),), seeds=(0,))
    with pytest.raises(LeakError, match="Held-out conditions are in the training"):
        run(study, tmp_path)
    assert not list(tmp_path.rglob("*.json"))


def _peeking(setting):
    return Peeking(profile=setting.profile)


def _copying(setting):
    return Copying(profile=setting.profile)


@pytest.mark.parametrize(
    ("make", "what"),
    [(_peeking, "the profile of the held-out cells"), (_copying, "1 held-out cells")],
)
def test_a_method_that_saw_the_answer_fails_the_run_not_the_score(tmp_path, make, what):
    method = Method(name="peeking", make=make)
    study = Study(tasks=(TASK,), methods=(method,), seeds=(0,), max_folds=1)
    with pytest.raises(LeakError, match=what):
        run(study, tmp_path)
    assert not (tmp_path / "records" / TASK.name / "peeking").exists()


def test_methods_get_no_held_out_cell():
    trial = make_trial()
    held = set(trial.requests["perturbation"])
    assert not held & set(trial.visible.obs["perturbation"])
    assert not held & set(trial.visible.obs["perturbation"].astype("category").cat.categories)
    assert trial.visible.n_obs + trial.held_out_cells.n_obs == screen().n_obs
    assert not set(trial.visible.obs_names) & set(trial.held_out_cells.obs_names)
    assert all(row["n_cells"] is None for row in trial.visible_split.held_out)
    trial.visible_split.check(trial.visible)
    trial.visible_split.leaks(trial.visible)


def test_features_are_made_without_expression():
    def features(adata):
        assert adata.X is None
        assert not adata.layers

    make_trial(replace(TASK, features=features))


def test_new_cells_from_the_truth_are_no_copies():
    trial = make_trial()
    evaluate(trial, truth_cells(trial))
    with pytest.raises(LeakError, match="held-out cells"):
        evaluate(trial, trial.held_out_cells)
