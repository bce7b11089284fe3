"""Every model can be judged as any other method."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from scvi_perturb.benchmark import Study, Task, Trial, model_method, run
from scvi_perturb.benchmark.methods import Setting
from scvi_perturb.data import ScreenKeys, SimulatorConfig, simulate_screen
from tests.contract.registry import MODELS

CONFIG = SimulatorConfig(n_perturbations=4, n_combinations=3, n_contexts=1)
TASK = Task(
    name="small",
    load=partial(simulate_screen, n_cells=600, n_genes=40, config=CONFIG),
    kind="unseen_combination",
    keys=ScreenKeys(context=("cell_type",)),
    n_folds=3,
)


@pytest.fixture(params=MODELS, ids=lambda case: case.name)
def case(request):
    return request.param


def as_method(case):
    return model_method(case.name, name="small", model_options=case.init, train_options=case.train)


def test_a_model_is_judged_as_a_method(case, tmp_path):
    study = Study(tasks=(TASK,), methods=(as_method(case),), seeds=(0,), max_folds=1)
    results = run(study, tmp_path)
    status = results.status().set_index("method").loc["small"]
    assert status["status"] == "ok", status["message"]
    found = results.frame().query("method == 'small'").groupby("metric")["value"].mean()
    assert {"nmse_vs_no_change", "energy", "pit_ece", "effect_coverage_90", "nll"} <= set(
        found.index
    )
    assert np.isfinite(found[["nmse_vs_no_change", "energy", "pit_ece", "nll"]]).all()
    cost = results.cost().iloc[0]
    assert cost["n_parameters"] > 0
    assert cost["trained_per_second"] > 0
    assert cost["n_predicted"] == TASK.max_cells * results.frame()["condition"].nunique()


def test_a_model_is_fitted_on_visible_cells_alone(case):
    trial = Trial.make(TASK, seed=0, fold=0)
    predictor = as_method(case).make(Setting(TASK.kind, TASK.values, None, 0))
    before = trial.visible.X.copy()
    predictor.fit(
        trial.visible,
        trial.visible_split,
        keys=TASK.keys,
    )
    assert (before != trial.visible.X).nnz == 0
    assert "_scvi_condition" not in trial.visible.obs  # registration writes to a copy
    assert predictor.model.adata.n_obs == trial.visible.n_obs
    cells = predictor.sample(trial.requests, n_samples=3, seed=0)
    assert cells.n_obs == 3 * len(trial.requests)


def test_unknown_models_are_refused():
    with pytest.raises(
        ValueError, match=r"Model 'scGPT' is not known; choose one of Causal.*, Hybrid.*, Perturb"
    ):
        model_method("scGPT")
