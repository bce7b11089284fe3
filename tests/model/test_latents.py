"""Latents and pairs that are too large for memory are in files without a name."""

from __future__ import annotations

import errno

import numpy as np
import pytest
import torch

from scvi_perturb import FlowConfig, _files
from scvi_perturb._core import Key
from scvi_perturb.model.base.latents import encode_cells, make_pairs

N_CELLS, N_LATENT = 5_000, 3


class Linear:
    """Latents that tell which cell they are of."""

    def encode(self, tensors):
        return tensors["x"], -tensors["x"]


def _made(n_neighbours):
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(N_CELLS, N_LATENT))).float()
    codes = {key: rng.integers(k, size=N_CELLS) for key, k in
             ((Key.CONDITION, 40), (Key.CONTEXT, 2), (Key.BATCH, 2))}  # fmt: skip
    latents = encode_cells(Linear(), lambda rows: {"x": values[rows]}, N_CELLS, torch.device("cpu"))
    order = rng.permutation(N_CELLS)
    return latents, make_pairs(
        latents,
        codes,
        train=order[:4000],
        validation=order[4000:],
        config=FlowConfig(n_neighbours=n_neighbours),
        seed=0,
    )


@pytest.mark.parametrize("n_neighbours", [1, 5])
def test_latents_and_pairs_on_disk_are_those_in_memory(n_neighbours, monkeypatch, tmp_path):
    memory = _made(n_neighbours)
    monkeypatch.setattr("scvi_perturb.model.base.latents.MOST_IN_MEMORY", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    disk = _made(n_neighbours)
    for one, other in zip(memory[0], disk[0], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    index = np.random.default_rng(1).permutation(N_CELLS)
    for key, values in memory[1][index].items():
        torch.testing.assert_close(disk[1][index][key], values, rtol=0, atol=0)
    assert not [*tmp_path.iterdir()]


def test_a_disk_that_is_too_small_is_said(monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="the disk is full"):
        _files.scratch((10, 3))
