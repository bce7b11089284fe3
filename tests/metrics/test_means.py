"""Metrics of the mean change: known answers, oracles, invariances."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from scipy import sparse
from scipy.spatial.distance import cdist, cosine
from scipy.stats import rankdata
from sklearn.metrics import mean_squared_error, r2_score

from scvi_perturb.metrics import pseudobulk, pseudobulk_variance
from scvi_perturb.metrics._means import (
    cosine_delta,
    de_weights,
    discrimination,
    nmse,
    nmse_terms,
    pearson_delta,
    top_genes,
    weighted_mse,
    weighted_r2,
)


@pytest.fixture
def profiles():
    rng = np.random.default_rng(0)
    control = rng.gamma(1, 1, 500)
    return control, control + rng.normal(0, 0.5, 500)


def test_top_genes_are_those_with_the_largest_true_change():
    control, observed = np.zeros(4), np.array([0.1, -3.0, 2.0, 0.0])
    assert top_genes(observed, control, 2).tolist() == [1, 2]
    assert top_genes(observed, control, 9).tolist() == [1, 2, 0, 3]
    with pytest.raises(ValueError, match="at least 1"):
        top_genes(observed, control, 0)


def test_pearson_is_numpys(profiles):
    control, observed = profiles
    predicted = observed + np.random.default_rng(1).normal(0, 0.5, 500)
    expected = np.corrcoef(predicted - control, observed - control)[0, 1]
    assert pearson_delta(predicted, observed, control) == pytest.approx(expected)
    genes = np.argsort(-np.abs(observed - control))[:50]
    expected = np.corrcoef((predicted - control)[genes], (observed - control)[genes])[0, 1]
    assert pearson_delta(predicted, observed, control, k=50) == pytest.approx(expected)


def test_pearson_of_perfect_scaled_and_reversed_change(profiles):
    control, observed = profiles
    change = observed - control
    assert pearson_delta(observed, observed, control) == pytest.approx(1)
    assert pearson_delta(control + 3 * change, observed, control) == pytest.approx(1)
    assert pearson_delta(control - change, observed, control) == pytest.approx(-1)


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_a_constant_change_correlates_with_nothing(profiles, constant):
    control, observed = profiles
    assert np.isnan(pearson_delta(control + constant, observed, control))
    assert np.isnan(pearson_delta(observed, control + constant, control))


def test_rounding_of_32_bits_is_no_change(profiles):
    control, observed = profiles
    rounded = control.astype(np.float32).astype(np.float64)
    assert (rounded != control).any()
    assert np.isnan(pearson_delta(rounded, observed, control))
    small = control + 1e-3 * (observed - control)
    assert pearson_delta(small, observed, control) == pytest.approx(1)


def test_nmse_of_no_change_is_one_exactly(profiles):
    control, observed = profiles
    assert nmse(control, observed, control) == 1.0
    assert nmse(control, observed, control, observed_variance=np.full(500, 0.01)) == 1.0


def test_nmse_of_perfect_half_and_tripled_change(profiles):
    control, observed = profiles
    change = observed - control
    assert nmse(observed, observed, control) == 0
    assert nmse(control + change / 2, observed, control) == pytest.approx(0.25)
    assert nmse(control + 3 * change, observed, control) == pytest.approx(4)


def test_nmse_is_freed_of_the_noise_of_few_cells():
    """The mean over experiments is the error that infinitely many cells would show."""
    rng = np.random.default_rng(0)
    control_truth, truth = rng.gamma(1, 1, 300), rng.gamma(1, 1, 300)
    predicted = truth + rng.normal(0, 0.3, 300)
    exact = nmse(predicted, truth, control_truth)
    found, raw = [], []
    for _ in range(60):
        cells = truth + rng.normal(0, 2, (10, 300))
        controls = control_truth + rng.normal(0, 2, (10, 300))
        observed, control = cells.mean(0), controls.mean(0)
        raw.append(nmse(predicted, observed, control))
        found.append(
            nmse(
                predicted,
                observed,
                control,
                observed_variance=cells.var(0, ddof=1) / 10,
                control_variance=controls.var(0, ddof=1) / 10,
            )
        )
    assert np.mean(found) == pytest.approx(exact, abs=0.02)
    assert np.mean(raw) > exact + 0.1


def test_measured_controls_score_above_one_against_the_noise_free_effect(profiles):
    control, observed = profiles
    assert nmse(control, observed, control, control_variance=np.full(500, 0.02)) > 1


def test_nmse_without_an_effect_is_undefined(profiles):
    control, observed = profiles
    assert np.isnan(nmse(observed, control, control))
    assert np.isnan(nmse(observed, observed, control, observed_variance=10.0))


@pytest.mark.parametrize("metric", [nmse, pearson_delta])
def test_profiles_must_agree_in_length(metric, profiles):
    control, observed = profiles
    with pytest.raises(ValueError, match="same genes"):
        metric(observed[:-1], observed, control)


@pytest.mark.parametrize("metric", [nmse, pearson_delta])
def test_order_of_genes_does_not_matter(metric, profiles):
    control, observed = profiles
    predicted = control + 0.5 * (observed - control) ** 2
    order = np.random.default_rng(1).permutation(500)
    shuffled = metric(predicted[order], observed[order], control[order])
    assert shuffled == pytest.approx(metric(predicted, observed, control))


def test_terms_are_what_nmse_divides(profiles):
    control, observed = profiles
    predicted = observed + np.random.default_rng(1).normal(0, 0.3, 500)
    noise = {"observed_variance": np.linspace(0, 0.02, 500), "control_variance": 0.001}
    error, effect = nmse_terms(predicted, observed, control, **noise)
    assert nmse(predicted, observed, control, **noise) == error / effect
    assert error == pytest.approx(((predicted - observed) ** 2).sum() - 5)
    assert effect == pytest.approx(((control - observed) ** 2).sum() - 5 - 0.5)


def test_pasted_control_has_the_error_of_no_change_exactly(profiles):
    control, observed = profiles
    variance = np.random.default_rng(2).gamma(1, 0.01, (2, 500))
    own = {"observed_variance": 2 * variance[0], "control_variance": variance[1]}
    error, effect = nmse_terms(control, observed, control, predicted_variance=variance[1], **own)
    assert error == effect
    scarce, _ = nmse_terms(control, observed, control, predicted_variance=9 * variance[1], **own)
    assert scarce == pytest.approx(effect + variance[1].sum() - 2 * variance[0].sum())


def test_scatter_of_the_prediction_is_forgiven_up_to_that_of_the_real_cells(profiles):
    control, observed = profiles
    predicted = observed + 0.2
    errors = [
        nmse_terms(predicted, observed, control, predicted_variance=noise, observed_variance=0.01)[
            0
        ]
        for noise in (0.0, 0.004, 0.01, 0.5, np.full(500, 0.5), np.nan)
    ]
    raw = 500 * 0.04
    expected = [raw - 5, raw - 7, raw - 10, raw - 10, raw - 10, raw - 5]
    np.testing.assert_allclose(errors, expected)


def test_unknown_noise_of_the_real_condition_leaves_no_terms(profiles):
    control, observed = profiles
    error, effect = nmse_terms(observed, observed, control, observed_variance=np.nan)
    assert np.isnan(error)
    assert np.isnan(effect)
    assert np.isnan(nmse(observed, observed, control, observed_variance=np.nan))


def test_kept_genes_alone_count_for_error_and_noise(profiles):
    control, observed = profiles
    kept = np.arange(500) != 3
    spoiled, variance = observed.copy(), np.full(500, 0.01)
    spoiled[3] += 100
    noise = {"observed_variance": variance, "control_variance": 0.02, "predicted_variance": 0.005}
    made = nmse_terms(spoiled, observed, control, kept=kept, **noise)
    noise["observed_variance"] = variance[kept]
    assert made == nmse_terms(observed[kept], observed[kept], control[kept], **noise)


def test_terms_of_a_replicate_are_free_of_noise():
    """Summed over conditions: a replicate has no error, as many cells as it may have."""
    rng = np.random.default_rng(0)
    sums = np.zeros(2)
    for _ in range(60):
        means = [np.ones(200), np.ones(200), np.zeros(200)]
        cells = [mean + rng.normal(0, 3, (12, 200)) for mean in means]
        variances = [x.var(0, ddof=1) / 12 for x in cells]
        names = ("predicted_variance", "observed_variance", "control_variance")
        profiles = [x.mean(0) for x in cells]
        sums += nmse_terms(*profiles, **dict(zip(names, variances, strict=True)))
    assert sums[1] / 60 == pytest.approx(200, rel=0.05)
    # The cap forgives the lesser of two equal noises: slightly less than the one.
    assert 0 < sums[0] / sums[1] < 0.08


def test_terms_agree_with_cell_eval():
    """Sums over genes, against means of genes; all genes, as they keep the own gene's noise."""
    delta = pytest.importorskip("cell_eval2.metrics.delta", reason="cell-eval2 is not installed")
    prep = pytest.importorskip("cell_eval2.prep", reason="cell-eval2 is not installed")
    rng = np.random.default_rng(0)
    n_genes, total = 80, 5e4
    profile = rng.gamma(0.5, 1, n_genes)
    sides = []
    for factor in (1.3, 1.7):
        shares = {"non-targeting": profile, "a": profile * factor ** rng.normal(size=n_genes)}
        shares["b"] = profile * factor ** rng.normal(size=n_genes)
        counts = [rng.poisson(5 * shares[name], (30 + 9 * len(name), n_genes)) for name in shares]
        labels = np.repeat(list(shares), [len(x) for x in counts])
        obs = pd.DataFrame({"target": labels}, index=[str(i) for i in range(len(labels))])
        sides.append(AnnData(sparse.csr_matrix(np.vstack(counts), dtype=np.float32), obs=obs))
    bulks, moments = [], []
    for side in sides:
        *bulk, moment = prep.pseudobulk_bulk_lognorm_with_moments(
            side, "target", bulk_target_sum=total
        )
        bulks.append(tuple(bulk))
        moments.append(moment)
    given = {"real_bulk": bulks[1], "real_moments": moments[1], "comparator": "bulk_lognorm"}
    both = {"pred_bulk": bulks[0], "pred_moments": moments[0]}
    errors, effects = delta.mse_unbiased(**given, **both), delta.distance_unbiased(**given)
    for name in ("a", "b"):
        cells = [sides[0][sides[0].obs["target"] == name].X]
        cells += [sides[1][sides[1].obs["target"] == x].X for x in (name, "non-targeting")]
        means = [pseudobulk(x, target_sum=total) for x in cells]
        noise = [pseudobulk_variance(x, target_sum=total) for x in cells]
        error, effect = nmse_terms(
            *means,
            predicted_variance=noise[0],
            observed_variance=noise[1],
            control_variance=noise[2],
        )
        assert effect / n_genes == pytest.approx(effects[name], rel=1e-9)
        uncapped = error + min(noise[0].sum(), noise[1].sum()) - noise[0].sum()
        assert uncapped / n_genes == pytest.approx(errors[name], rel=1e-9)


@pytest.fixture
def from_reference():
    """Predicted and observed from_reference and a reference."""
    rng = np.random.default_rng(0)
    reference = rng.gamma(1, 1, 300)
    observed = reference + rng.normal(0, 0.4, 300)
    return observed + rng.normal(0, 0.4, 300), observed, reference


def test_cosine_is_scipys(from_reference):
    predicted, observed, reference = from_reference
    expected = 1 - cosine(predicted - reference, observed - reference)
    assert cosine_delta(*from_reference) == pytest.approx(expected)
    kept = np.arange(300) % 3 > 0
    expected = 1 - cosine((predicted - reference)[kept], (observed - reference)[kept])
    assert cosine_delta(*from_reference, kept) == pytest.approx(expected)


def test_cosine_sees_direction_alone(from_reference):
    _, observed, reference = from_reference
    change = observed - reference
    assert cosine_delta(reference + 3 * change, observed, reference) == pytest.approx(1)
    assert cosine_delta(reference - change, observed, reference) == pytest.approx(-1)
    assert cosine_delta(observed + 1.0, observed, reference) < 0.5, "not centred over genes"


def test_no_change_has_no_direction(from_reference):
    predicted, observed, reference = from_reference
    rounded = reference.astype(np.float32).astype(np.float64)
    assert (rounded != reference).any()
    for same in (reference, rounded):
        assert np.isnan(cosine_delta(same, observed, reference))
        assert np.isnan(cosine_delta(predicted, same, reference))
    small = reference + 1e-3 * (observed - reference)
    assert cosine_delta(small, observed, reference) == pytest.approx(1)


def test_weights_by_hand():
    made = de_weights(np.array([1.0, -3.0, 2.0, 0.0, 9.0]), np.array([1, 1, 1, 1, 0], bool))
    np.testing.assert_allclose(made, np.array([1, 9, 4, 0, 0]) / 14)
    shifted = de_weights(np.array([-1.0, 3.0, 2.0]))
    np.testing.assert_allclose(shifted, np.array([0, 4, 1]) / 5)


def test_weights_are_relative_and_of_one_sum():
    scores = np.random.default_rng(0).normal(size=100)
    assert de_weights(scores).sum() == pytest.approx(1)
    np.testing.assert_allclose(de_weights(5 * scores), de_weights(-scores))


def test_equal_scores_give_no_weights():
    assert np.isnan(de_weights(np.ones(4))).all()
    assert np.isnan(de_weights(np.arange(4.0), np.zeros(4, bool))).all()
    nowhere = np.full(4, np.nan)
    assert np.isnan(weighted_mse(np.ones(4), np.zeros(4), nowhere))
    assert np.isnan(weighted_r2(np.ones(4), np.arange(4.0), nowhere))


def test_weights_refuse_scores_that_are_not_finite():
    scores = np.array([1.0, np.nan, 2.0])
    with pytest.raises(ValueError, match="Found 1 scores that are not finite"):
        de_weights(scores)
    assert de_weights(scores, np.array([True, False, True])).tolist() == [0, 0, 1]


def test_weighted_errors_are_sklearns(from_reference):
    predicted, observed, reference = from_reference
    weights = de_weights(np.random.default_rng(3).normal(size=300))
    changes = observed - reference, predicted - reference
    assert weighted_mse(predicted, observed, weights) == pytest.approx(
        mean_squared_error(observed, predicted, sample_weight=weights)
    )
    assert weighted_r2(changes[1], changes[0], weights) == pytest.approx(
        r2_score(*changes, sample_weight=weights)
    )


def test_the_mean_of_training_conditions_explains_nothing(from_reference):
    _, observed, reference = from_reference
    change = observed - reference
    weights = de_weights(change)
    assert weighted_r2(np.zeros(300), change, weights) <= 0
    assert weighted_r2(change, change, weights) == 1
    assert weighted_r2(3 * change, change, weights) < 0


@pytest.mark.parametrize("constant", [0.0, 0.3])
def test_a_real_change_that_does_not_vary_cannot_be_explained(constant):
    weights = de_weights(np.arange(50.0))
    assert np.isnan(weighted_r2(np.arange(50.0), np.full(50, constant), weights))


def test_lengths_must_agree(from_reference):
    predicted, observed, reference = from_reference
    with pytest.raises(ValueError, match="same genes"):
        cosine_delta(predicted[1:], observed, reference)
    for function in (weighted_mse, weighted_r2):
        with pytest.raises(ValueError, match="same genes"):
            function(predicted, observed, np.ones(3))


@pytest.fixture
def changes():
    rng = np.random.default_rng(0)
    observed = rng.normal(size=(23, 60)) + rng.normal(size=60)
    return observed + 6 * rng.normal(size=(23, 60)), observed


def test_is_the_rank_of_the_own_condition(changes):
    predicted, observed = changes
    distance = cdist(predicted, observed, "cosine")
    ranks = np.array([rankdata(row)[i] - 1 for i, row in enumerate(distance)])
    made = discrimination(predicted, observed)
    np.testing.assert_allclose(made, 1 - ranks / 22)
    assert 0.5 < made.mean() < 1


def test_perfect_scaled_and_reversed(changes):
    _, observed = changes
    assert discrimination(observed, observed).tolist() == [1.0] * 23
    assert discrimination(5 * observed, observed).tolist() == [1.0] * 23
    assert discrimination(-observed, observed).tolist() == [0.0] * 23


@pytest.mark.parametrize("n", [2, 3, 17, 40])
@pytest.mark.parametrize("copies", [1, 2])
def test_a_constant_prediction_averages_a_half(n, copies):
    rng = np.random.default_rng(n)
    observed = np.repeat(rng.normal(size=(n, 501)), copies, axis=0)
    constant = np.tile(rng.normal(size=501), (n * copies, 1))
    made = discrimination(constant, observed)
    assert made.mean() == pytest.approx(0.5, abs=1e-15)
    # Real conditions that are equal are equally near.
    assert len(np.unique(made)) == n


def test_no_change_scores_a_half_everywhere(changes):
    predicted, observed = changes
    assert discrimination(np.zeros_like(observed), observed).tolist() == [0.5] * 23
    some = predicted.copy()
    some[3] = 0
    assert discrimination(some, observed)[3] == 0.5


def test_equal_conditions_share_their_rank(changes):
    _, observed = changes
    twins = observed.copy()
    twins[7] = twins[2]
    made = discrimination(twins, twins)
    assert made[2] == made[7] == 1 - 0.5 / 22
    assert np.delete(made, [2, 7]).tolist() == [1.0] * 21


def test_order_of_conditions_and_genes_does_not_matter(changes):
    predicted, observed = changes
    rng = np.random.default_rng(1)
    rows, columns = rng.permutation(23), rng.permutation(60)
    turned = discrimination(predicted[rows][:, columns], observed[rows][:, columns])
    np.testing.assert_allclose(turned, discrimination(predicted, observed)[rows])


def test_raising_the_targets_of_others_gains_nothing():
    """The signature of who is targeted is left out on both sides, in every comparison."""
    rng = np.random.default_rng(0)
    n, n_genes = 20, 100
    observed = 0.3 * rng.normal(size=(n, n_genes))
    observed[np.arange(n), np.arange(n)] = -5.0  # knocked down
    spiked = np.zeros((n, n_genes))
    spiked[:, :n] = 1.0 - np.eye(n)
    targeted = np.arange(n_genes) < n
    assert discrimination(spiked, observed).mean() > 0.9
    assert discrimination(spiked, observed, targeted=targeted).tolist() == [0.5] * n


def test_what_cannot_be_ranked():
    one = np.ones((1, 5))
    assert np.isnan(discrimination(one, one)).all()
    two = np.eye(2)
    assert np.isnan(discrimination(two, two, targeted=np.ones(2, bool))).all()
    with pytest.raises(ValueError, match="same conditions and genes"):
        discrimination(two, np.ones((2, 3)))
    with pytest.raises(ValueError, match="not finite"):
        discrimination(np.full((2, 2), np.nan), two)


def test_agrees_with_cell_eval(changes):
    cell_eval = pytest.importorskip(
        "cell_eval2.metrics.discrimination", reason="cell-eval2 is not installed"
    )
    predicted, observed = changes
    predicted, observed = predicted.copy(), observed.copy()
    predicted[4], predicted[9] = 0, predicted[8]
    n, n_genes = observed.shape
    genes = np.array([f"g{i:02d}" for i in range(n_genes)])
    names = np.array([f"p{i:02d}" for i in range(n)])
    control = np.random.default_rng(5).gamma(1, 1, n_genes)
    labels = np.append(names, "non-targeting")
    sides = [(labels, np.vstack([control + x, control])) for x in (predicted, observed)]
    expected = cell_eval.discrimination_score(
        pred_bulk=sides[0],
        real_bulk=sides[1],
        distance="cosine",
        rank_denominator="n-1",
        tie_policy="midrank",
        exclusion_scope="panel",
        control_source="real",
        genes=genes,
        target_gene_map=dict(zip(names, genes, strict=False)),
    )
    made = discrimination(
        sides[0][1][:-1] - control, sides[1][1][:-1] - control, targeted=np.arange(n_genes) < n
    )
    np.testing.assert_allclose(made, [expected[name] for name in names], atol=1e-12)
