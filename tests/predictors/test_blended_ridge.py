"""Several modalities in one similarity: weights, sharpness, and the regression on it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.kernel_ridge import KernelRidge as ControlCells

from scvi_perturb._core import SchemaError, UnknownPerturbationError
from scvi_perturb.features import PerturbationFeatures
from scvi_perturb.predictors import BlendedKernelRidge, KernelRidge
from scvi_perturb.predictors.ridge import tuning_rows
from scvi_perturb.similarity.kernels import Similarity, sharpened, tanimoto
from tests.predictors._effects import FEATURES, effects, lfc, pairs

RNG = np.random.default_rng(0)
NAMES = [f"p{i:02d}" for i in range(60)]
SETS = pd.DataFrame(RNG.integers(0, 2, (60, 12)).astype(float), index=NAMES)
OTHER = pd.DataFrame(RNG.integers(0, 2, (60, 12)).astype(float), index=NAMES)
REAL = pd.DataFrame(RNG.normal(size=(60, 4)), index=NAMES)
TRUTH = SETS.to_numpy() @ RNG.normal(size=(12, 8))
TRAINED, ASKED = NAMES[:45], NAMES[45:]


def fitted(modalities, truth=TRUTH, cls=BlendedKernelRidge, **options):
    predictor = cls(PerturbationFeatures(modalities), profile="effects", **options)
    return predictor.fit(effects(pairs(TRAINED, truth)))


def error(predictor, truth=TRUTH):
    return ((lfc(predictor, ASKED) - truth[45:]) ** 2).sum()


def test_one_modality_that_is_not_sharpened_is_kernel_ridge():
    blended = fitted({"sets": SETS}, sharpnesses=(0,))
    plain = fitted({"sets": SETS}, cls=KernelRidge)
    assert blended.weights_ == {"sets": 1.0}
    assert blended.lambda_ == plain.lambda_
    np.testing.assert_allclose(lfc(blended, ASKED), lfc(plain, ASKED), rtol=1e-5, atol=1e-6)


def test_it_is_kernel_ridge_on_the_blend_that_it_chose():
    predictor = fitted({"sets": SETS, "other": OTHER + SETS}, sharpnesses=(2.0, 4.0))
    weights, sharpness = predictor.weights_, predictor.sharpness_
    assert sum(weights.values()) == pytest.approx(1)
    tables = {"sets": SETS.to_numpy(), "other": (OTHER + SETS).to_numpy()}
    mean = sum(weights[name] * tanimoto(t, t) for name, t in tables.items())
    kernel = (np.exp(sharpness * mean) - 1) / (np.exp(sharpness) - 1)
    centre = TRUTH[:45].mean(0)
    oracle = ControlCells(alpha=predictor.lambda_, kernel="precomputed")
    oracle.fit(kernel[:45, :45], TRUTH[:45] - centre)
    expected = centre + oracle.predict(kernel[45:, :45])
    np.testing.assert_allclose(lfc(predictor, ASKED), expected, rtol=1e-4, atol=1e-4)


def test_a_modality_that_says_nothing_weighs_little_and_does_little_harm():
    both = {"sets": SETS, "other": OTHER}
    predictor = fitted(both)
    assert predictor.weights_["sets"] > 0.9
    alone, plain = fitted({"sets": SETS}), fitted(both, cls=KernelRidge)
    assert error(predictor) < 1.05 * error(alone)
    assert error(predictor) < 0.8 * error(plain)


def test_where_no_modality_says_anything_the_mean_is_predicted():
    noise = np.random.default_rng(5).normal(size=TRUTH.shape)
    predictor = fitted({"sets": SETS, "real": REAL}, noise)
    spread = lfc(predictor, ASKED) - noise[:45].mean(0)
    assert np.abs(spread).max() < 0.3


def test_the_sharpness_that_made_the_changes_is_found():
    """Names on a circle, alike by how much of it both cover; changes drawn from a sharp kernel."""
    errors = np.zeros(2)
    for seed in range(4):
        rng = np.random.default_rng(seed)
        cover = (np.arange(60) - rng.permutation(60)[:, None]) % 60 < 25
        sets = {"sets": pd.DataFrame(cover.astype(float), index=NAMES)}
        values, vectors = np.linalg.eigh(sharpened(tanimoto(cover * 1.0, cover * 1.0), 8.0))
        truth = (vectors * np.sqrt(np.maximum(values, 0))) @ rng.normal(size=(60, 8))
        truth += 0.3 * rng.normal(size=truth.shape)
        sharp, flat = fitted(sets, truth), fitted(sets, truth, sharpnesses=(0,))
        assert sharp.sharpness_ == 8
        errors += error(sharp, truth), error(flat, truth)
    assert errors[0] < 0.97 * errors[1]


def test_the_sharpness_is_that_of_the_least_error_of_refits():
    names, truth = NAMES[:12], np.sin(3 * TRUTH[:12])
    penalty, choices, errors = 0.3, (0.0, 2.0, 8.0), []
    kernel = tanimoto(SETS.to_numpy()[:12], SETS.to_numpy()[:12])
    centred = truth - truth.mean(0)
    for choice in choices:
        sharp, total = sharpened(kernel, choice), 0.0
        for i in range(12):
            kept = np.arange(12) != i
            oracle = ControlCells(alpha=penalty, kernel="precomputed")
            oracle.fit(sharp[np.ix_(kept, kept)], centred[kept])
            total += ((oracle.predict(sharp[[i]][:, kept]) - centred[i]) ** 2).sum()
        errors.append(total)
    predictor = BlendedKernelRidge(
        PerturbationFeatures({"sets": SETS}),
        sharpnesses=choices,
        penalties=(penalty,),
        profile="effects",
    ).fit(effects(pairs(names, truth)))
    assert predictor.sharpness_ == choices[int(np.argmin(errors))]
    assert np.ptp(errors) > 0.01 * min(errors)


def test_sharpened_is_a_kernel_between_the_same_ends():
    alike = tanimoto(SETS.to_numpy(), SETS.to_numpy())
    for sharpness in (1.0, 8.0):
        made = sharpened(alike, sharpness)
        np.testing.assert_allclose(np.diagonal(made), 1)
        assert np.linalg.eigvalsh(made).min() > -1e-10
        assert (made <= alike + 1e-12).all()
        gauss = np.exp(-sharpness * (1 - alike))  # 1 - alike: half the squared distance
        shift = np.exp(-sharpness)
        np.testing.assert_allclose(made, (gauss - shift) / (1 - shift), atol=1e-12)
    np.testing.assert_allclose(sharpened(alike, 1e-9), alike, atol=1e-8)
    assert sharpened(np.zeros(2), 5.0).tolist() == [0, 0]


def test_a_name_is_compared_by_the_modalities_that_it_has():
    part = PerturbationFeatures({"sets": SETS.iloc[:50], "real": REAL.iloc[20:]})
    weighed = Similarity(part, NAMES[:45], weights={"sets": 3.0, "real": 1.0})
    alike, shared = weighed.between(["p00", "p30", "p55"])
    sets = tanimoto(SETS.to_numpy()[:45], SETS.to_numpy()[:45])
    np.testing.assert_allclose(alike[0], sets[0])  # p00 has no other
    assert not shared[2, :20].any()
    assert (alike[2, :20] == 0).all()
    real = weighed.between(["p55"])[0][0, 20:]
    assert (real > 0).all()
    np.testing.assert_allclose(
        4 * alike[1, 20] - 3 * sets[30, 20], weighed.parts(["p30"])["real"][0][0, 20]
    )
    predictor = BlendedKernelRidge(part, profile="effects").fit(effects(pairs(TRAINED, TRUTH)))
    assert np.isfinite(lfc(predictor, ASKED)).all()


def test_combinations_teach_and_are_the_mean_of_their_components():
    rng = np.random.default_rng(0)
    rows = [(name, rng.normal(size=3)) for name in ("A", "C", "D", "A+C", "C+D")]
    predictor = BlendedKernelRidge(FEATURES, penalties=(0.1,), profile="effects")
    predictor.fit(effects(rows))
    made = lfc(predictor, ["A+C", "A", "C", "E+F", "E", "F", "control"])
    np.testing.assert_allclose(made[0], made[1:3].mean(0), rtol=1e-4)
    np.testing.assert_allclose(made[3], made[4:6].mean(0), rtol=1e-4)
    assert (made[6] == 0).all()


def test_tuning_takes_whole_groups():
    groups = np.repeat(np.arange(20), 3)
    assert tuning_rows(groups, 60).tolist() == list(range(60))
    some = tuning_rows(groups, 31)
    assert len(some) == 30
    assert np.bincount(groups[some]).max() == 3
    assert set(np.bincount(groups[some])) <= {0, 3}
    assert (
        len(np.unique(groups[tuning_rows(groups, 2)])) == 2
    )  # one alone has nothing to learn from
    few = fitted({"sets": SETS, "other": OTHER}, n_tuning=30)
    assert error(few) < 1.3 * error(fitted({"sets": SETS, "other": OTHER}))


def test_messages():
    with pytest.raises(SchemaError, match=r"BlendedKernelRidge compares .*given none"):
        BlendedKernelRidge(profile="effects").fit(effects([("A", [1.0])]))
    with pytest.raises(UnknownPerturbationError, match="'Z' was not trained on"):
        fitted({"sets": SETS}).predict(["p01", "Z"])
    with pytest.raises(ValueError, match="sharpnesses"):
        BlendedKernelRidge(sharpnesses=(-1,))
    with pytest.raises(ValueError, match="at least one number"):
        BlendedKernelRidge(sharpnesses=())
    with pytest.raises(ValueError, match="n_tuning=1"):
        BlendedKernelRidge(n_tuning=1)
    with pytest.raises(ValueError, match="above 0"):
        BlendedKernelRidge(penalties=(0,))
