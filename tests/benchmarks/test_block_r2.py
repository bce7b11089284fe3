"""A block that holds the truth knows all of it, noise knows nothing."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks._block_r2 import block_r2

N = 400


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def truth(rng):
    return rng.normal(size=(N, 4))


def test_blocks_know_their_own_truth_only(rng, truth):
    mixed = {
        "a": truth[:, :2] @ rng.normal(size=(2, 2)),
        "b": truth[:, 2:] @ rng.normal(size=(2, 3)),
    }
    table = block_r2(mixed, {"first": truth[:, :2], "second": truth[:, 2:], "one": truth[:, 0]})
    assert list(table.index) == ["first", "second", "one"]
    assert list(table.columns) == ["a", "b"]
    for row, column in (("first", "a"), ("second", "b"), ("one", "a")):
        assert table.loc[row, column] == pytest.approx(1, abs=1e-4)
    # Five coefficients fitted to noise cost about 5 / n of the variance; its noise is sqrt(2 / n).
    for row, column in (("first", "b"), ("second", "a"), ("one", "b")):
        assert -0.1 < table.loc[row, column] < 0.05


def test_share_of_noise_is_what_is_not_known(rng):
    truth = rng.normal(size=(5000, 2))
    noisy = truth + rng.normal(size=truth.shape)
    found = block_r2({"noisy": noisy}, {"truth": truth}).loc["truth", "noisy"]
    assert found == pytest.approx(0.5, abs=4 * np.sqrt(2 / 10_000))


def test_kernel_sees_what_is_not_linear(rng):
    estimated = rng.normal(size=(N, 2))
    truth = np.abs(estimated[:, 0])
    blocks = {"z": estimated}, {"size": truth}
    assert block_r2(*blocks).loc["size", "z"] < 0.1
    assert block_r2(*blocks, regression="kernel").loc["size", "z"] > 0.9
    assert block_r2({"z": rng.normal(size=(N, 2))}, blocks[1], regression="kernel").iloc[0, 0] < 0.1


def test_factors_that_do_not_vary_are_left_out(truth):
    padded = np.column_stack([truth, np.ones(N)])
    assert block_r2({"z": truth}, {"all": padded}).iloc[0, 0] == pytest.approx(1, abs=1e-4)
    assert np.isnan(block_r2({"z": truth}, {"still": np.ones(N)}).iloc[0, 0])


def test_seed_decides(truth):
    blocks = {"a": truth[:, :2]}, {"b": truth[:, 1:]}
    assert block_r2(*blocks, seed=1).equals(block_r2(*blocks, seed=1))
    assert not block_r2(*blocks, seed=1).equals(block_r2(*blocks, seed=2))


def test_refuses_what_it_cannot_compare(truth):
    with pytest.raises(ValueError, match="same cells"):
        block_r2({"a": truth[1:]}, {"b": truth})
    with pytest.raises(ValueError, match="at least 10 cells"):
        block_r2({"a": truth[:9]}, {"b": truth[:9]})
    with pytest.raises(ValueError, match="1 of them with latents that are not finite"):
        block_r2({"a": np.where(np.arange(N)[:, None] == 3, np.nan, truth)}, {"b": truth})
    with pytest.raises(ValueError, match="kernel"):
        block_r2({"a": truth}, {"b": truth}, regression="forest")
    with pytest.raises(ValueError, match="0 estimated"):
        block_r2({}, {"b": truth})
