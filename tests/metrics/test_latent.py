"""A representation that is the truth scores 1, a mixture of it less, and noise nothing."""

from __future__ import annotations

import numpy as np
import pytest

from scvi_perturb.metrics._latent import block_r2, dci, mask_auroc, mean_correlation

N = 400


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def truth(rng):
    return rng.normal(size=(N, 4))


def test_order_sign_and_scale_do_not_matter(truth):
    moved = truth[:, [2, 0, 3, 1]] * np.array([-1.0, 5.0, 0.1, -3.0]) + 7
    assert mean_correlation(moved, truth) == pytest.approx(1)


def test_correlation_of_a_known_mixture(rng):
    """Two latents rotated by 45 degrees correlate by sqrt(1/2) with each."""
    truth = rng.normal(size=(20_000, 2))
    turned = truth @ np.array([[1.0, -1.0], [1.0, 1.0]]) / np.sqrt(2)
    # A correlation rho of n cells has a standard error of (1 - rho^2) / sqrt(n).
    error = 0.5 / np.sqrt(20_000)
    assert mean_correlation(turned, truth) == pytest.approx(np.sqrt(0.5), abs=4 * error)


def test_latents_are_matched_one_to_one(truth):
    """Greedy matching would give the second factor what the first already has."""
    estimated = np.column_stack([truth[:, 0], truth[:, 0] + 0.1 * truth[:, 1]])
    found = mean_correlation(estimated, truth[:, :2])
    strength = np.abs(np.corrcoef(estimated, truth[:, :2], rowvar=False)[:2, 2:])
    best = max(strength[0, 0] + strength[1, 1], strength[0, 1] + strength[1, 0]) / 2
    assert found == pytest.approx(best)
    assert found < 0.6


def test_missing_and_constant_latents_count_zero(truth):
    assert mean_correlation(truth[:, :3], truth) == pytest.approx(0.75)
    assert mean_correlation(truth * [1, 1, 1, 0], truth) == pytest.approx(0.75)
    assert mean_correlation(np.hstack([truth, truth]), truth) == pytest.approx(1)


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
    found = dci(truth, padded, importance="lasso")
    assert found.informativeness > 0.99
    assert found.completeness > 0.9
    assert (found.importance[:, -1] == 0).all()


@pytest.mark.parametrize("importance", ["lasso", "boosting"])
def test_disentangled_and_entangled_representations(truth, importance):
    right = dci(-truth[:, [1, 0, 3, 2]], truth, importance=importance)
    assert min(right.disentanglement, right.completeness, right.informativeness) > 0.9
    np.testing.assert_array_equal(right.importance.argmax(axis=0), [1, 0, 3, 2])
    # A Hadamard matrix spreads every factor over all latents alike, and loses nothing.
    hadamard = np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    mixed = dci(truth @ hadamard, truth, importance=importance)
    assert max(mixed.disentanglement, mixed.completeness) < 0.2
    assert mixed.informativeness > (0.95 if importance == "lasso" else 0.5)


def test_copies_of_factors_are_disentangled_but_not_complete(truth):
    rng = np.random.default_rng(1)
    copies = np.hstack([truth[:, :2], truth[:, :2]]) + 0.1 * rng.normal(size=(N, 4))
    found = dci(copies, truth[:, :2])
    assert found.disentanglement > 0.9
    # Two of four latents for each factor: 1 - log 2 / log 4.
    assert found.completeness == pytest.approx(0.5, abs=0.1)


def test_mixing_latents_is_complete_but_not_disentangled(truth):
    """One latent holds two factors, the others one or nothing."""
    estimated = np.column_stack([truth[:, 0] + truth[:, 1], truth[:, 2], 0 * truth[:, 3]])
    found = dci(estimated, truth[:, :3], importance="lasso")
    assert found.completeness > 0.9
    assert found.disentanglement < 0.85


def test_noise_informs_of_nothing(rng, truth):
    found = dci(rng.normal(size=(N, 3)), truth)
    assert found.informativeness < 0.05
    assert np.isnan(dci(truth, truth[:, :1], importance="lasso").disentanglement)
    assert np.isnan(dci(truth[:, :1], truth, importance="lasso").completeness)


def test_seed_decides(truth):
    one, same, other = (dci(truth, truth, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.importance, same.importance)
    assert not np.array_equal(one.importance, other.importance)
    blocks = {"a": truth[:, :2]}, {"b": truth[:, 1:]}
    assert block_r2(*blocks, seed=1).equals(block_r2(*blocks, seed=1))


def test_targets_are_told_apart():
    mask = np.array([[True, False, False], [False, True, False]])
    assert mask_auroc(mask + 0.0, mask) == 1
    assert mask_auroc(1.0 - mask, mask) == 0
    assert mask_auroc(np.ones(mask.shape), mask) == 0.5
    scores = np.array([[3.0, 1.0, 2.0], [4.0, 2.5, 0.0]])
    pairs = [(a > b) for a in scores[mask] for b in scores[~mask]]
    assert mask_auroc(scores, mask) == pytest.approx(np.mean(pairs))
    assert np.isnan(mask_auroc(np.ones(3), np.zeros(3, bool)))


def test_refuses_what_it_cannot_compare(truth):
    with pytest.raises(ValueError, match="same cells"):
        mean_correlation(truth[1:], truth)
    with pytest.raises(ValueError, match="at least 10 cells"):
        dci(truth[:9], truth[:9])
    with pytest.raises(ValueError, match="1 of them with latents that are not finite"):
        mean_correlation(np.where(np.arange(N)[:, None] == 3, np.nan, truth), truth)
    with pytest.raises(ValueError, match="kernel"):
        block_r2({"a": truth}, {"b": truth}, regression="forest")
    with pytest.raises(ValueError, match="boosting"):
        dci(truth, truth, importance="forest")
    with pytest.raises(ValueError, match="0 estimated"):
        block_r2({}, {"b": truth})
    with pytest.raises(ValueError, match="one for each entry"):
        mask_auroc(np.ones(3), np.ones(2, bool))
