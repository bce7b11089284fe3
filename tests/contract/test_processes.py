"""Training by two processes on CPUs, and by one that is killed."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from scvi_perturb.model.base.training import n_batches, n_processes
from scvi_perturb.testing import fit, make_model
from tests._source import ROOT
from tests.contract._processes import KILLED_OF_EPOCHS


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Where every model was trained, by one start of Python: that is what takes long."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("processes cannot talk to each other here")
    made = tmp_path_factory.mktemp("processes")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **{k: v for k, v in os.environ.items() if k not in {"LOCAL_RANK", "WORLD_SIZE"}},
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract._processes", str(made)],
        cwd=made,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return made


@pytest.fixture
def processes(case, folder):
    """What each process had at the end."""
    files = [folder / f"{case.name}_{rank}.pt" for rank in (0, 1)]
    return [torch.load(file, weights_only=True) for file in files]


def test_processes_have_the_same_weights(processes):
    first, second = (process["weights"] for process in processes)
    assert first.keys() == second.keys()
    for key, values in first.items():
        assert torch.equal(values, second[key]), key
        assert values.isfinite().all()
    assert all(process["trained"] for process in processes)


def test_first_process_has_the_history(case, processes):
    first, second = (process["history"] for process in processes)
    assert second == {}
    for stage in case.stages:
        for part in ("train", "validation"):
            assert np.isfinite(first[f"{stage}_{part}_loss"]).all()
    assert len(first[f"{case.stages[0]}_train_loss"]) == case.train["max_epochs"]


def test_processes_draw_the_same_cells_and_train_on_different_noise(processes):
    assert torch.equal(processes[0]["cells"], processes[1]["cells"])
    first, second = (process["random_states"] for process in processes)
    assert len(first) == len(second) > 0
    assert all(one != two for one, two in zip(first, second, strict=True))


def test_each_process_encodes_its_share_of_the_cells(processes):
    first, second = processes
    assert torch.equal(first["latents_in_shares"], second["latents_in_shares"])
    torch.testing.assert_close(first["latents_in_shares"], first["latents"])


def test_steps_are_those_of_all_processes():
    assert n_processes({"devices": 4, "num_nodes": 2}) == 8
    assert n_processes({"devices": "auto"}) == 1
    assert n_batches(1000, 10, {"devices": 4, "num_nodes": 2}) == 13


def test_nothing_but_logs_is_written(folder):
    # The logs are scvi-tools' own, wherever the run was started.
    written = {path.name for path in folder.iterdir() if path.suffix != ".pt"}
    assert written <= {"lightning_logs", "killed"}


def test_killed_process_is_gone_on_with(case, folder, simulated):
    left = folder / "killed" / case.name
    if not left.exists():
        pytest.skip("processes cannot be forked here")
    assert {path.name for path in left.iterdir()} == {f"{case.stages[0]}.ckpt", "run.json"}
    models = [make_model(case, simulated.copy()) for _ in range(2)]
    for model, options in zip(models, ({"checkpoint_dir": left}, {}), strict=True):
        fit(case, model, max_epochs=KILLED_OF_EPOCHS, **options)
    resumed, whole = (model.module.state_dict() for model in models)
    for key, values in whole.items():
        torch.testing.assert_close(resumed[key], values, rtol=0, atol=1e-6)
    for key, losses in models[1].history_.items():
        np.testing.assert_allclose(models[0].history_[key], losses, atol=1e-6)
