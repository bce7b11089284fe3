"""Training by two processes on CPUs."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from tests._source import ROOT


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where every model was trained by two processes, in one run: what takes long is to start."""
    if not torch.distributed.is_gloo_available():
        pytest.skip("processes cannot talk to each other here")
    made = tmp_path_factory.mktemp("distributed")
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **{k: v for k, v in os.environ.items() if k not in {"LOCAL_RANK", "WORLD_SIZE"}},
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.contract._distributed", str(made)],
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
    first, second = (process["noises"] for process in processes)
    assert len(first) == len(second) > 0
    assert all(one != two for one, two in zip(first, second, strict=True))


def test_nothing_but_logs_is_written(folder):
    # The logs are scvi-tools' own, wherever the run was started.
    assert {path.name for path in folder.iterdir() if path.suffix != ".pt"} <= {"lightning_logs"}
