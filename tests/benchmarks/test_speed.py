"""What the speed benchmark measures with: counts of a known density, a timer, memory."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch

from benchmarks import speed
from benchmarks._simulated import simulate
from benchmarks._timing import EpochTimer, n_cells
from scvi_perturb.benchmark import peak_memory, reset_peak_memory


def test_simulated_counts_have_the_density_asked_for():
    adata = simulate(3000, 150, density=0.1, seed=0)
    assert adata.X.nnz / np.prod(adata.shape) == pytest.approx(0.1, abs=0.01)
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert set(adata.obs["perturbation"]) == {"control", "A", "B"}
    assert (simulate(3000, 150, seed=0).X != adata.X).nnz == 0


def test_timer_leaves_out_the_warm_up_and_keeps_stages_apart():
    timer = EpochTimer()
    timer.runs = [[(10, 100.0), (10, 1.0), (30, 1.0)], [(5, 9.0), (5, 5.0)]]
    assert timer.cells_per_second() == 20
    assert timer.cells_per_second(1) == 1
    with pytest.raises(ValueError, match="needs > 3"):
        timer.cells_per_second(warm_up=3)


def test_timer_counts_the_cells_of_batches():
    timer = EpochTimer()
    timer.on_train_start(None, None)
    for _ in range(2):
        timer.on_train_epoch_start(None, None)
        for size in (4, 3):
            timer.on_train_batch_end(None, None, None, {"X": torch.zeros(size, 2)}, 0)
        timer.on_train_epoch_end(None, None)
    assert [cells for cells, _ in timer.runs[0]] == [7, 7]
    assert all(seconds > 0 for _, seconds in timer.runs[0])


def test_cells_of_a_batch_of_latents():
    assert n_cells({"number": torch.tensor(3), "latent": torch.zeros(5, 2)}) == 5


def test_peak_memory_holds_what_was_freed():
    before = reset_peak_memory()
    with mmap.mmap(-1, 64 * 2**20) as held:  # an array may lie in memory that others have freed
        held.write(b"1" * len(held))
    assert peak_memory() - before > 50


@pytest.mark.filterwarnings("ignore")
def test_scvi_is_timed():
    setting = speed.Setting(n_hidden=8, n_latent=4, batch_size=100, n_epochs=2, accelerator="cpu")
    run = speed.train_scvi(simulate(300, 40), setting)
    assert run.speed > 100
    assert run.seconds > 0


def test_report_names_the_setting():
    import pandas as pd

    frame = pd.DataFrame([("training", 12_345.6, "cells/s"), ("ratio", 1.234, "times")],
                         columns=["what", "value", "unit"])  # fmt: skip
    text = speed.report(frame, speed.Setting())
    assert "| training | 12,346 | cells/s |" in text
    assert "| ratio | 1.23 | times |" in text
    assert "20,000 cells x 2,000 genes" in text
